//! The one place through which decoders run: what they panic over is wrong with the file, and no panic's text reaches
//! a user.
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// How many guarded calls this thread is within.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Runs a decoder; a panic in it becomes an error. Panics elsewhere, and on other threads, keep their message.
///
/// # Errors
/// What `decode` fails with, or that the decoder gave up.
pub fn guarded<T, E: From<String>>(decode: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    // A fuzzer is to see every panic.
    if cfg!(fuzzing) {
        return decode();
    }
    silence_guarded();
    DEPTH.with(|depth| depth.set(depth.get() + 1));
    let outcome = catch_unwind(AssertUnwindSafe(decode));
    DEPTH.with(|depth| depth.set(depth.get() - 1));
    outcome.unwrap_or_else(|_| Err(E::from("damaged in a way that its decoder has no word for".to_string())))
}

/// Puts a hook before the one that is there, which hears of no panic within a guarded call.
fn silence_guarded() {
    static HOOKED: Once = Once::new();
    HOOKED.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            // A thread that is ending has no depth any more, and is in no guarded call.
            if DEPTH.try_with(Cell::get).unwrap_or(0) == 0 {
                usual(panic);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_and_what_follows_is_guarded_no_more() {
        let outcome: Result<(), String> = guarded(|| panic!("a decoder's own words"));
        assert!(outcome.is_err_and(|text| !text.contains("own words")));
        assert_eq!(DEPTH.with(Cell::get), 0);
        assert_eq!(guarded(|| guarded(|| Ok::<_, String>(DEPTH.with(Cell::get)))), Ok(2));
        assert!(guarded(|| Err::<(), _>("said".to_string())).is_err_and(|text| text == "said"));
    }
}
