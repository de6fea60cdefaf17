//! The programs' allocator: the system's, but where memory is refused the program ends with an error that says so. Rust's
//! own way is to abort.
//!
//! Nothing is lost by it but the step at hand: files are whole or absent at any time.
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// To be made the `#[global_allocator]` of a program.
pub struct Allocator;

thread_local! {
    /// Whether the caller handles a refusal itself.
    static IS_HANDLED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `reserve`, such as a `try_reserve`, which handles a refusal itself.
pub fn handled<R>(reserve: impl FnOnce() -> R) -> R {
    let before = IS_HANDLED.replace(true);
    let outcome = reserve();
    IS_HANDLED.set(before);
    outcome
}

// SAFETY: every call is the system allocator's, and what it returns is passed on.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller says.
        granted(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller says.
        granted(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller says.
        granted(unsafe { System.realloc(pointer, layout, size) }, size)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller says.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[inline]
fn granted(pointer: *mut u8, bytes: usize) -> *mut u8 {
    if pointer.is_null() && !IS_HANDLED.try_with(Cell::get).unwrap_or(false) {
        end(bytes);
    }
    pointer
}

/// Says it and ends the program, with no more memory.
#[cold]
#[cfg(target_os = "linux")]
fn end(bytes: usize) {
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering};
    static SAID: AtomicBool = AtomicBool::new(false);
    if SAID.swap(true, Ordering::Relaxed) {
        // Another thread is about to end the program.
        loop {
            std::thread::park();
        }
    }
    let mut line = [0u8; 160];
    let mut rest = &mut line[..];
    let limits = "is it limited, as by ulimit -v or a container?";
    // The line has room for it.
    let _ = writeln!(rest, "error: out of memory: the system refuses {bytes} bytes more ({limits})");
    let length = 160 - rest.len();
    // SAFETY: the bytes are those of the line, and the program ends without running anything that might need memory.
    unsafe {
        libc::write(2, line.as_ptr().cast(), length);
        libc::_exit(1)
    }
}

#[cold]
#[cfg(not(target_os = "linux"))]
fn end(_bytes: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: Allocator = Allocator;

    #[test]
    fn a_refusal_that_is_handled_ends_nothing() {
        let mut bytes = Vec::<u8>::new();
        assert!(handled(|| bytes.try_reserve_exact(isize::MAX as usize)).is_err());
        assert!(!IS_HANDLED.get());
        bytes.resize(1 << 20, 1);
        bytes.extend(std::iter::repeat_n(2, 3 << 20));
        assert_eq!((bytes[(1 << 20) - 1], bytes[1 << 20], bytes.len()), (1, 2, 4 << 20));
    }
}
