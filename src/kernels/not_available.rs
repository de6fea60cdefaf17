//! What `amx` and `avx512` are on machines that cannot have them.
use crate::kernels::matrix::{Product, Threads, View, Windows};

pub struct PackedA;

pub struct PackedB;

pub fn are_available() -> bool {
    false
}

pub fn takes(_: &Product) -> bool {
    false
}

pub fn gains(_: (usize, usize, usize)) -> bool {
    false
}

/// # Safety
/// Never called, for nothing is taken.
pub unsafe fn multiply(_: &Product, _: *mut f32, _: usize) {}

/// # Safety
/// Never called, for nothing is taken.
pub unsafe fn multiply_windows(_: &Product, _: Windows, _: *mut f32, _: usize) {}

impl PackedA {
    pub fn new(_: usize, _: usize) -> Self {
        unreachable!("not available")
    }

    pub fn set(&mut self, _: usize, _: &[f32]) {
        unreachable!("not available")
    }
}

impl PackedB {
    pub fn new(_: View, _: (usize, usize), _: Threads) -> Self {
        unreachable!("not available")
    }

    pub fn multiply(&self, _: &PackedA, _: usize, _: Option<&[f32]>, _: &mut [f32]) {
        unreachable!("not available")
    }
}
