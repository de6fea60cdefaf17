//! Batches of images that are read while others are computed.
use crate::system::error::Result;
use crate::system::process::refused;
use std::sync::mpsc::{Receiver, sync_channel};

/// Calls `compute` with a channel of the `batches`, which a thread reads: one that waits to be taken, and `more` besides.
///
/// # Errors
/// Those of `compute`; the system starts no thread.
pub fn read_ahead<B: Send>(
    batches: impl Iterator<Item = B> + Send,
    more: usize,
    compute: impl FnOnce(&Receiver<B>) -> Result<()>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(more);
        let read = move || {
            for batch in batches {
                // Nobody waits for more once something has failed.
                if sender.send(batch).is_err() {
                    break;
                }
            }
        };
        std::thread::Builder::new().spawn_scoped(scope, read).map_err(|e| refused("a thread that reads images", e))?;
        // Receiving fails where the thread has panicked, which the scope passes on.
        compute(&receiver)
    })
}
