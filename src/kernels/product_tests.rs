//! Products on the units that a machine may have.
use super::matrix::{Product, Start, Threads, View, Windows};
use super::{amx, avx512};
use rand::{Rng, SeedableRng};

/// What multiplies on some units: their name, whether they take a product, and what they make of it.
type Units = (&'static str, fn(&Product) -> bool, unsafe fn(&Product, *mut f32, usize));
const UNITS: [Units; 2] = [("AMX", amx::takes, amx::multiply), ("AVX-512", avx512::takes, multiply_on_avx512)];

unsafe fn multiply_on_avx512(product: &Product, out: *mut f32, out_stride: usize) {
    // SAFETY: the caller's promise.
    unsafe { avx512::multiply_windows(product, Windows::one(product.shape.0), out, out_stride) }
}

/// Against sums in f64: as near as products in f32, for any shape and stride, on one thread as on several.
#[test]
fn products_are_those_of_f32() {
    UNITS.iter().for_each(check);
}

fn check(&(name, takes, multiply): &Units) {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    let large = [(64, 512, 32), (33, 965, 47), (130, 1100, 161), (300, 192, 768), (700, 47, 333), (1100, 33, 70)];
    let small = [(8, 1, 1), (9, 385, 17), (15, 3, 16), (29, 16, 33)];
    let shapes = large.into_iter().chain(small);
    for (m, k, n) in shapes {
        for (a_is_turned, b_is_turned, added, scale) in [
            (false, true, "row", 1.0),
            (true, false, "output", 0.3),
            (false, false, "", -2.5),
            (true, true, "output", 1.0),
        ] {
            // Sizes from 1e-6 to 1e6, both signs.
            let mut numbers = |count: usize| -> Vec<f32> {
                let number = |_| random.random_range(-1f32..1.0) * 10f32.powi(random.random_range(-6..7));
                (0..count).map(number).collect()
            };
            let (a, b, before) = (numbers(m * k), numbers(k * n), numbers(m * (n + 3)));
            let view = |data, rows, columns, is_transposed| match is_transposed {
                true => View::rows(data, rows).transposed(),
                false => View::rows(data, columns),
            };
            let (a, b) = (view(&a, m, k, a_is_turned), view(&b, k, n, b_is_turned));
            let run = |threads| {
                let start = match added {
                    "row" => Start::Row(&before[..n]),
                    "output" => Start::Output,
                    _ => Start::Zero,
                };
                let product = Product { scale, start, threads, ..Product::new((m, k, n), a, b) };
                if !takes(&product) {
                    println!("{m}×{k}×{n}: not tested on {name}, which this machine lacks or which does not take it");
                    return None;
                }
                let mut out = before.clone();
                // SAFETY: the sizes are those of the slices.
                unsafe { multiply(&product, out.as_mut_ptr(), n + 3) };
                Some(out)
            };
            let (Some(one), Some(all)) = (run(Threads::One), run(Threads::All)) else { continue };
            assert_eq!(one, all);
            let at =
                |view: View, i: usize, j: usize| f64::from(view.data[i * view.row_stride + j * view.column_stride]);
            for (place, found) in one.iter().enumerate() {
                let (i, j) = (place / (n + 3), place % (n + 3));
                if j >= n {
                    assert_eq!(*found, before[place], "beyond the columns");
                    continue;
                }
                let terms = (0..k).map(|l| at(a, i, l) * at(b, l, j) * f64::from(scale));
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                let before = match added {
                    "row" => f64::from(before[j]),
                    "output" => f64::from(before[place]),
                    _ => 0.0,
                };
                let off = (f64::from(*found) - sum - before).abs() / (size + before.abs());
                // Where one term outweighs the others every addition after it, three a place, may err by 2^-25 of it.
                assert!(off < 1e-6, "{m} {k} {n}, {a_is_turned} {b_is_turned}: {i} {j} is off by {off}");
            }
        }
    }
}

/// Numbers that are none, or too large, never vanish.
#[test]
fn what_is_not_finite_stays_so() {
    for (name, takes, multiply) in UNITS {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(u32::MAX)] {
            let (mut a, b) = (vec![1f32; 128 * 128], vec![1f32; 128 * 128]);
            a[5 * 128 + 7] = bad;
            let view = |data| View::rows(data, 128);
            for (a, b) in [(view(&a), view(&b)), (view(&b), view(&a))] {
                let product = Product::new((128, 128, 128), a, b);
                if !takes(&product) {
                    continue;
                }
                let mut out = vec![0f32; 128 * 128];
                // SAFETY: the sizes are those of the slices.
                unsafe { multiply(&product, out.as_mut_ptr(), 128) };
                assert_eq!(out.iter().filter(|value| !value.is_finite()).count(), 128, "{bad} on {name}");
            }
        }
    }
}
