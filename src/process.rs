//! What a program that trains or measures sets up before it has threads.

/// Prepares the allocator, candle's and rayon's threads; to be called first in `main`. Results do not depend on it.
pub fn prepare() {
    keep_freed_memory();
    // SAFETY: no other thread is there yet that could read the environment.
    unsafe {
        // candle's own worker threads wait for work in a busy loop of milliseconds, on a core that others need.
        std::env::set_var("CANDLE_BARRIER_POOL_SPIN_LIMIT", "1");
    }
    // This thread becomes one of rayon's, which saves waking one for every operation. It must not be the only one: a
    // loader's thread would wait for it while it waits for the loader.
    if std::thread::available_parallelism().is_ok_and(|threads| threads.get() > 1)
        && std::env::var_os("RAYON_NUM_THREADS").is_none()
    {
        // An error means that a pool is there already, which serves as well.
        let _ = rayon::ThreadPoolBuilder::new().use_current_thread().build_global();
    }
}

/// Keeps freed activations for the next step instead of handing them back to the kernel, which would clear every page
/// again. Weights that are larger than this go back when they are dropped.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_freed_memory() {
    /// Also the most that glibc takes.
    const LARGEST_ACTIVATION: libc::c_int = 32 << 20;
    const KEPT: libc::c_int = 1 << 30;
    // SAFETY: mallopt only sets numbers, and nothing else uses the allocator at the same time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_ACTIVATION);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
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
