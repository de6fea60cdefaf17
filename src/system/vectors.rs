//! Loops translated for several widths of vector instructions, of which the machine's widest is taken.
//!
//! The crate multiversion does this for functions without `self` alone, and every loop here is a block over the variables
//! around it; pulp, which is in the tree, takes a closure (see below). Neither can be told to leave out AVX-512.
use std::sync::OnceLock;

/// Evaluates an expression with the widest vector instructions of this machine. What it calls must be inlined to profit.
///
/// A macro and not a function of a closure, which the compiler would translate by itself, without these instructions,
/// unless it happens to inline it: here every width has a closure of its own, called in one place.
macro_rules! vectorised {
    ($work:expr) => {{
        use $crate::system::vectors::{Vectors, with_avx2, with_avx512};
        match Vectors::of_this_machine() {
            // SAFETY: the machine has these instructions.
            Vectors::Avx512 => unsafe { with_avx512(|| $work) },
            // SAFETY: as above.
            Vectors::Avx2 => unsafe { with_avx2(|| $work) },
            Vectors::Any => $work,
        }
    }};
}
pub(crate) use vectorised;

/// Vector instructions that loops are translated for.
#[derive(Clone, Copy)]
pub enum Vectors {
    Avx512,
    Avx2,
    Any,
}

impl Vectors {
    /// The widest that this machine has; no wider than 256 bits where `SEG4DIFF_NO_AVX512` is set.
    #[cfg(target_arch = "x86_64")]
    pub fn of_this_machine() -> Self {
        static FOUND: OnceLock<Vectors> = OnceLock::new();
        macro_rules! has {
            ($($feature:tt)*) => { $(is_x86_feature_detected!($feature))&&* };
        }
        *FOUND.get_or_init(|| match has!("avx2" "fma" "bmi1" "bmi2" "lzcnt" "popcnt") {
            true if has!("avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl")
                && std::env::var_os("SEG4DIFF_NO_AVX512").is_none() =>
            {
                Self::Avx512
            }
            true => Self::Avx2,
            false => Self::Any,
        })
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn of_this_machine() -> Self {
        Self::Any
    }
}

/// # Safety
/// The machine has these instructions.
#[cfg_attr(
    target_arch = "x86_64",
    target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi1,bmi2,lzcnt,popcnt")
)]
pub unsafe fn with_avx512<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// # Safety
/// The machine has these instructions.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt"))]
pub unsafe fn with_avx2<R>(work: impl FnOnce() -> R) -> R {
    work()
}
