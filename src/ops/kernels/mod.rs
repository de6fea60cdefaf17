//! What operations on the CPU are made of: matrix products, matrix and vector units, convolutions by Winograd's filtering.
#[cfg_attr(not(all(target_arch = "x86_64", target_os = "linux")), path = "not_available.rs")]
pub(super) mod amx;
#[cfg_attr(not(target_arch = "x86_64"), path = "not_available.rs")]
pub(super) mod avx512;
pub(super) mod cpu;
pub(crate) mod memory;
pub(super) mod panel;
pub mod pool;
pub(super) mod winograd;

#[cfg(test)]
mod product_tests;
