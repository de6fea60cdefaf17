//! The wait for all processes of a job while they start, before they watch over each other.
//!
//! A process that has not come may be on its way: its program or a library comes from a slow disk, or its machine has other
//! work. So it has as long as [`Arrival`] is told. But one of this machine that was stopped is seen to stand still.
use crate::system::error::Result;
use crate::system::launch::Launch;
use crate::system::process::{end_at_once, refused};
use crate::system::siblings::{host_name, stopped};
use crate::system::terminal::complain_of;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two looks at the clock.
const LOOK: Duration = Duration::from_millis(50);
/// Time between two looks at the other processes.
const WIDER_LOOK: Duration = Duration::from_secs(1);
/// A process that stood still at so many of these looks, one after the other, was stopped.
const STANDSTILL: u32 = 15;
/// How long a process leaves it to the one before it to say what is wrong.
const TURN: Duration = Duration::from_secs(1);

/// What is waited for.
struct Wait {
    left: Duration,
    problem: String,
}

/// Ends this process where the others have not come in time: before they watch over each other.
pub struct Arrival {
    wait: Arc<Mutex<Option<Wait>>>,
    turn: Duration,
}

impl Arrival {
    /// Waits for the others for so long from now on.
    ///
    /// # Errors
    /// The thread that does it cannot start.
    pub fn await_others(launch: Launch, time: Duration) -> Result<Self> {
        let rank = launch.rank;
        let problem =
            format!("rank {rank} waits for processes that have not come: one was stopped, or its machine is gone");
        // One says it: rank 0, unless that has not come.
        let turn = TURN * rank.min(2) as u32;
        let wait = Arc::new(Mutex::new(Some(Wait { left: time + turn, problem })));
        let shared = wait.clone();
        let thread = std::thread::Builder::new().name("arrival".into()).spawn(move || look(launch, &shared));
        thread.map_err(|e| refused("the wait for other processes", e))?;
        Ok(Self { wait, turn })
    }

    /// Waits for so long from now on; then says the problem, if that is known.
    pub fn go_on(&self, time: Duration, problem: Option<String>) {
        if let Some(wait) = &mut *self.wait.lock().unwrap_or_else(PoisonError::into_inner) {
            wait.left = time + self.turn;
            wait.problem = problem.unwrap_or_else(|| wait.problem.clone());
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        *self.wait.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Looks after the others until nobody waits for them any more.
fn look(launch: Launch, wait: &Mutex<Option<Wait>>) {
    let mut standing: BTreeMap<usize, u32> = BTreeMap::new();
    let (mut looked, mut looked_wide) = (Instant::now(), Instant::now());
    let patience = STANDSTILL + launch.rank.min(2) as u32;
    loop {
        std::thread::sleep(LOOK);
        if let Some(wait) = &mut *wait.lock().unwrap_or_else(PoisonError::into_inner) {
            // A process that was stopped itself, as with its whole job, has not waited meanwhile.
            wait.left = wait.left.saturating_sub(looked.elapsed().min(2 * LOOK));
            looked = Instant::now();
            if wait.left.is_zero() {
                end(&wait.problem);
            }
        } else {
            return;
        }
        if looked_wide.elapsed() < WIDER_LOOK {
            continue;
        }
        looked_wide = Instant::now();
        standing =
            stopped(launch).into_iter().map(|rank| (rank, standing.get(&rank).map_or(1, |looks| looks + 1))).collect();
        if let Some((rank, _)) = standing.iter().find(|(_, looks)| **looks >= patience) {
            end(&format!("rank {rank} on {} stands still: it was stopped", host_name()));
        }
    }
}

fn end(problem: &str) -> ! {
    complain_of(problem);
    end_at_once(1)
}
