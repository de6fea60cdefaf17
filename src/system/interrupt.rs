//! Ctrl-C, and the signals that ask a program to end.
use crate::system::error::{Error, Result};
#[cfg(unix)]
use signal_hook::consts::SIGUSR1;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What asks a program to end. `mpirun` passes SIGUSR1 on, not Ctrl-C, and Slurm sends it before a job's time is over
/// (`--signal=USR1@300`). On Windows nothing sends SIGTERM; Ctrl-Break is what one program can send another.
#[cfg(unix)]
const REQUESTS: [i32; 3] = [SIGINT, SIGTERM, SIGUSR1];
#[cfg(windows)]
const REQUESTS: [i32; 3] = [SIGINT, SIGTERM, signal_hook::consts::SIGBREAK];

/// A flag that such a request raises; a second one ends the program at once.
///
/// # Errors
/// The system does not let the program listen.
pub fn stop_flag() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in REQUESTS {
        signal_hook::flag::register_conditional_shutdown(signal, 1, stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .map_err(|e| Error::Failed(format!("cannot listen for signal {signal}: {e}")))?;
    }
    Ok(stop)
}
