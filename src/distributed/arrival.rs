//! The wait for all processes of a job while they start, before they watch over each other.
use crate::system::error::Result;
use crate::system::process::{end_at_once, refused};
use crate::system::terminal::complain_loudly;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two looks at the clock.
const LOOK: Duration = Duration::from_millis(50);
/// How long a process leaves it to the one before it to say what is wrong.
const TURN: Duration = Duration::from_secs(1);

/// Ends this process where the others have not come in time: before they watch over each other.
pub struct Arrival {
    until: Arc<Mutex<Option<(Instant, String)>>>,
}

impl Arrival {
    /// Waits for the others for so long from now on.
    ///
    /// # Errors
    /// The thread that does it cannot start.
    pub fn await_others(rank: usize, time: Duration) -> Result<Self> {
        let problem =
            format!("rank {rank} waits for processes that have not come: one was stopped, or its machine is gone");
        let until = Arc::new(Mutex::new(Some((Instant::now() + time, problem))));
        let shared = until.clone();
        let wait = move || {
            loop {
                let until = shared.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let Some((until, problem)) = until else { return };
                // One says it: rank 0, unless that has not come.
                if Instant::now() >= until + TURN * rank.min(2) as u32 {
                    complain_loudly(&format!("error: {problem}"));
                    end_at_once(1)
                }
                std::thread::sleep(LOOK);
            }
        };
        let thread = std::thread::Builder::new().name("arrival".into()).spawn(wait);
        thread.map_err(|e| refused("the wait for other processes", e))?;
        Ok(Self { until })
    }

    /// Waits for so long from now on; then says the problem, if that is known.
    pub fn go_on(&self, time: Duration, problem: Option<String>) {
        if let Some((until, said)) = &mut *self.until.lock().unwrap_or_else(PoisonError::into_inner) {
            *until = Instant::now() + time;
            *said = problem.unwrap_or_else(|| said.clone());
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
