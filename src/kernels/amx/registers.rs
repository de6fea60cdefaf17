//! The tile registers, which the compiler knows nothing of.
use super::pack::{Packing, SIDE, Tiles};
use std::arch::asm;
use std::arch::x86_64::_mm512_setzero_ps;

/// Shapes of the registers.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All eight of 16 rows of 64 bytes.
static SHAPES: Shapes = Shapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// How often a step gives a packing its turn.
pub const PACK_INTERVALS: usize = 4;

/// This thread's registers, in use while this lives.
pub struct Registers(());

impl Registers {
    /// # Safety
    /// The machine has the registers, the kernel has lent them, and nothing else on this thread holds them.
    pub unsafe fn new() -> Self {
        // SAFETY: as the caller says; the shapes are whole.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &SHAPES, options(nostack, readonly)) };
        Self(())
    }

    /// 32×32 results `a·b`, written to rows of `stride` from `out` on: `steps` pairs of tiles a side. They are added to the
    /// rows that `start` points to, with their stride, if there are any. Between the products a `packing` gets [`PACK_INTERVALS`]
    /// turns a step.
    ///
    /// Of the nine products of parts the largest six are formed. Without vector instructions in between, AVX-512's units are
    /// powered down within a microsecond, and storing waits until they are up again: dummy additions keep them powered.
    ///
    /// # Safety
    /// `a` and `b` point to `2 · steps` of [`Tiles`], `start` and `out` to 32 rows of 32 values, of which no one else uses
    /// those of `out`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn multiply(
        &mut self,
        (mut a, mut b): (*const Tiles, *const Tiles),
        steps: usize,
        (out, stride): (*mut f32, usize),
        start: Option<(*const f32, usize)>,
        mut packing: Option<&mut Packing>,
    ) {
        let below = out.wrapping_add(SIDE * stride);
        let bytes = stride * size_of::<f32>();
        let mut awake = _mm512_setzero_ps();
        // SAFETY: as the caller says. Tile registers are not the compiler's.
        unsafe {
            if let Some((start, stride)) = start {
                asm!(
                    "tileloadd tmm0, [{out} + {bytes}]", "tileloadd tmm1, [{out} + {bytes} + 64]",
                    "tileloadd tmm2, [{below} + {bytes}]", "tileloadd tmm3, [{below} + {bytes} + 64]",
                    out = in(reg) start, below = in(reg) start.wrapping_add(SIDE * stride),
                    bytes = in(reg) stride * size_of::<f32>(), options(nostack),
                );
            } else {
                asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
            }
            // Parts lie 1024 bytes apart, the lower tiles 3072. Registers: results 0 to 3, left 4 and 5, right 6 and 7.
            for _ in 0..steps {
                asm!(
                    "vaddps {awake}, {awake}, {awake}",
                    // First by third, first by second.
                    "tileloadd tmm4, [{a} + {row}]", "tileloadd tmm6, [{b} + {row} + 2048]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b} + {row} + 5120]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{a} + {row} + 3072]",
                    "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                    "tileloadd tmm6, [{b} + {row} + 1024]",
                    "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm2, tmm5, tmm6",
                    a = in(reg) a, b = in(reg) b, row = in(reg) 64usize, awake = inout(zmm_reg) awake, options(nostack),
                );
                if let Some(packing) = &mut packing {
                    packing.go_on();
                }
                asm!(
                    "vaddps {awake}, {awake}, {awake}",
                    // First by second goes on, first by first.
                    "tileloadd tmm7, [{b} + {row} + 4096]",
                    "tdpbf16ps tmm1, tmm4, tmm7", "tdpbf16ps tmm3, tmm5, tmm7",
                    "tileloadd tmm6, [{b} + {row}]",
                    "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm2, tmm5, tmm6",
                    "tileloadd tmm7, [{b} + {row} + 3072]",
                    "tdpbf16ps tmm1, tmm4, tmm7", "tdpbf16ps tmm3, tmm5, tmm7",
                    b = in(reg) b, row = in(reg) 64usize, awake = inout(zmm_reg) awake, options(nostack),
                );
                if let Some(packing) = &mut packing {
                    packing.go_on();
                }
                asm!(
                    "vaddps {awake}, {awake}, {awake}",
                    // Third by first, second by first.
                    "tileloadd tmm4, [{a} + {row} + 2048]",
                    "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{a} + {row} + 5120]",
                    "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                    "tileloadd tmm4, [{a} + {row} + 1024]",
                    "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
                    a = in(reg) a, row = in(reg) 64usize, awake = inout(zmm_reg) awake, options(nostack),
                );
                if let Some(packing) = &mut packing {
                    packing.go_on();
                }
                asm!(
                    "vaddps {awake}, {awake}, {awake}",
                    // Second by first goes on, second by second.
                    "tileloadd tmm5, [{a} + {row} + 4096]",
                    "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                    "tileloadd tmm6, [{b} + {row} + 1024]",
                    "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm2, tmm5, tmm6",
                    "tileloadd tmm7, [{b} + {row} + 4096]",
                    "tdpbf16ps tmm1, tmm4, tmm7", "tdpbf16ps tmm3, tmm5, tmm7",
                    a = in(reg) a, b = in(reg) b, row = in(reg) 64usize, awake = inout(zmm_reg) awake, options(nostack),
                );
                if let Some(packing) = &mut packing {
                    packing.go_on();
                }
                (a, b) = (a.add(2), b.add(2));
            }
            asm!(
                "tilestored [{out} + {bytes}], tmm0", "tilestored [{out} + {bytes} + 64], tmm1",
                "tilestored [{below} + {bytes}], tmm2", "tilestored [{below} + {bytes} + 64], tmm3",
                out = in(reg) out, below = in(reg) below, bytes = in(reg) bytes, options(nostack),
            );
        }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: gives back what `new` took.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}
