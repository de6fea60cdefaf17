//! What a program that trains or measures sets up before it has threads, and what becomes of it where memory or threads
//! are refused.
use crate::system::error::{Error, Result};

/// Prepares the allocator, candle's and rayon's threads; to be called before anything else runs, of `local_size` processes
/// that were launched together on this machine. Results do not depend on it.
///
/// # Errors
/// The threads are refused.
pub fn prepare(local_size: usize) -> Result<()> {
    keep_freed_memory();
    // SAFETY: no other thread is there yet that could read the environment.
    unsafe {
        // candle's own worker threads wait for work in a busy loop of milliseconds, on a core that others need.
        std::env::set_var("CANDLE_BARRIER_POOL_SPIN_LIMIT", "1");
    }
    // This thread becomes one of rayon's, which saves waking one for every operation. It must not be the only one: a
    // loader's thread would wait for it while it waits for the loader.
    let mut pool = rayon::ThreadPoolBuilder::new();
    if std::env::var_os("RAYON_NUM_THREADS").is_none() {
        let threads = threads_of_each(local_size);
        if local_size > 1 {
            pool = pool.num_threads(threads);
        }
        if threads > 1 {
            pool = pool.use_current_thread();
        }
    }
    pool.build_global().map_err(|e| refused("worker threads", e))
}

/// Threads of one of `local_size` processes on this machine: its share, where the launcher has not bound it to cores.
fn threads_of_each(local_size: usize) -> usize {
    let Ok(mine) = std::thread::available_parallelism() else { return 1 };
    let is_bound = local_size > 1 && online_cores().is_some_and(|all| mine.get() < all);
    if is_bound { mine.get() } else { (mine.get() / local_size.max(1)).max(1) }
}

/// Cores of the machine; not known everywhere.
fn online_cores() -> Option<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
    let count = |range: &str| {
        let mut ends = range.split('-').map(|end| end.trim().parse::<usize>().ok());
        let first = ends.next()??;
        Some(ends.next().map_or(Some(first), |last| last)? + 1 - first)
    };
    text.split(',').map(count).sum()
}

/// Ends this process without a look at its other threads, which may wait for something that never comes.
pub fn end_at_once(status: u8) -> ! {
    #[cfg(target_os = "linux")]
    // SAFETY: the call takes a number and does not return; nothing that it leaves undone outlives the process.
    unsafe {
        libc::_exit(status.into())
    }
    #[cfg(not(target_os = "linux"))]
    std::process::exit(status.into())
}

/// The error that the system refuses to start `what`.
pub fn refused(what: &str, reason: impl std::fmt::Display) -> Error {
    Error::Failed(format!("cannot start {what}: {reason} (are memory or threads limited, as by ulimit -v or -u?)"))
}

/// Keeps freed activations for the next step instead of handing them back to the kernel, which would clear every page
/// again. Weights that are larger than this go back when they are dropped.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_freed_memory() {
    /// Also the most that glibc takes.
    const LARGEST_ACTIVATION: libc::c_int = 32 << 20;
    const RETAINED: libc::c_int = 1 << 30;
    // SAFETY: mallopt only sets numbers, and nothing else uses the allocator at the same time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_ACTIVATION);
        libc::mallopt(libc::M_TRIM_THRESHOLD, RETAINED);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_memory() {}

/// Hands freed memory back to the kernel after all, so that what the process has is what it uses.
pub fn release_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call is safe at any time and from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
