//! What operations are made of. On the CPU: matrix products, matrix and vector units, convolutions by Winograd's filtering. On a
//! GPU: `cuda`.
#[cfg_attr(not(all(target_arch = "x86_64", target_os = "linux")), path = "not_available.rs")]
pub(crate) mod amx;
#[cfg_attr(not(target_arch = "x86_64"), path = "not_available.rs")]
mod avx512;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub(crate) mod matrix;
pub(crate) mod memory;
pub(crate) mod packed;
pub(crate) mod pool;
mod product;
pub(crate) mod winograd;

#[cfg(test)]
mod product_tests;
