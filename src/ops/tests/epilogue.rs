//! Products by cuBLASLt with their epilogues, and the MLP with and without them.
use super::cuda::{LINEAR_TOLERANCE, TOLERANCE, assert_near, device, rounded};
use super::helpers::{differentiate, normal, some_feed_forward, values};
use crate::autograd::Variable;
use crate::kernels::cuda::epilogue::{Epilogue, gains_by_gelu, take_epilogues};
use crate::kernels::cuda::product::{Matrix, Product};
use crate::kernels::cuda::zero;
use crate::ops;
use candle_core::{DType, Device, Tensor};

/// Products with their epilogues, against candle's operations on the CPU; and that cuBLASLt does take bf16's on a GPU that
/// gains by it.
#[test]
fn products_with_epilogues() {
    let Some(device) = device("epilogues") else { return };
    let may_be = std::env::var_os("SEG4DIFF_NO_EPILOGUE").is_none();
    let gains = may_be && gains_by_gelu(device.as_cuda_device().unwrap()).unwrap();
    // The emulated cuBLASLt has no algorithm for the first shape and sums the last in parts; the third is not aligned.
    for (rows, inner, columns) in [(1, 64, 16), (129, 64, 208), (40, 24, 12), (17, 1040, 48)] {
        for (dtype, tolerance) in TOLERANCE {
            let place = |t: &Tensor| t.to_device(&device).unwrap().to_dtype(dtype).unwrap();
            let host = |seed, shape: &[usize]| rounded(&normal(seed, shape));
            let scale = 1.0 / (inner as f64).sqrt();
            let (a, b, bias) = (host(1, &[rows, inner]), host(2, &[inner, columns]), host(3, &[columns]));
            let before = host(4, &[rows, columns]);
            let product = (a.matmul(&b).unwrap() * scale).unwrap();
            let sum = product.broadcast_add(&bias).unwrap();
            let derivative = {
                let (_, gradients) = differentiate(
                    |inputs| ops::gelu(&inputs[0]),
                    std::slice::from_ref(&before),
                    &[true],
                    |_| before.ones_like().unwrap(),
                );
                gradients[0].clone().unwrap()
            };
            let [a, b, bias, given] = [&a, &b, &bias, &before].map(place);
            let kept = given.zeros_like().unwrap();
            let cases = [
                ("a bias", Epilogue::Bias(&bias), sum.clone()),
                ("GELU", Epilogue::Gelu { bias: None, kept: &kept }, product.gelu().unwrap()),
                ("a bias and GELU", Epilogue::Gelu { bias: Some(&bias), kept: &kept }, sum.gelu().unwrap()),
                ("GELU's derivative", Epilogue::GeluBackward { kept: &given }, (&product * derivative).unwrap()),
            ];
            for is_transposed in [false, true] {
                let transposed = b.t().unwrap().contiguous().unwrap();
                let b = if is_transposed { Matrix::of(&transposed).map(Matrix::transposed) } else { Matrix::of(&b) };
                let (a, b) = (Matrix::of(&a).unwrap(), b.unwrap());
                let of = Product { shape: (rows, inner, columns), entries: 1, a, b, scale };
                for (what, epilogue, wanted) in &cases {
                    let what = format!("a product {:?} {dtype:?}, transposed: {is_transposed}, with {what}", of.shape);
                    let out = given.zeros_like().unwrap();
                    zero(&kept).unwrap();
                    if !of.write_with(Matrix::of(&out).unwrap(), *epilogue).unwrap() {
                        let must = gains && dtype == DType::BF16 && rows > 1 && columns % 8 == 0;
                        assert!(!must, "cuBLASLt does not take {what}");
                        let left = values(&out.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap());
                        assert!(left.iter().all(|value| *value == 0.0), "{what}: something was written");
                        println!("{what}: two kernels");
                        continue;
                    }
                    assert_near(&what, &out, wanted, tolerance);
                    if let Epilogue::Gelu { bias, .. } = epilogue {
                        assert_near(&what, &kept, if bias.is_some() { &sum } else { &product }, tolerance);
                    }
                }
            }
        }
    }
}

/// A GELU's input left by one path and taken by the other.
#[test]
fn feed_forward_with_and_without() {
    let Some(device) = device("feed-forward without epilogues") else { return };
    let x = rounded(&normal(8, &[2, 20, 64]));
    let run = |device: &Device, dtype: DType, [forward, backward]: [bool; 2]| {
        let x = [x.to_device(device).unwrap().to_dtype(dtype).unwrap()];
        let run = |inputs: &[Variable]| {
            take_epilogues(forward);
            let on = |seed, shape: &[usize]| rounded(&normal(seed, shape)).to_device(device).unwrap();
            some_feed_forward(&inputs[0], (2, 64, 256), true, on, |_| 0.125)
        };
        let gradient = |output: &Tensor| {
            take_epilogues(backward);
            rounded(&normal(9, output.dims())).to_device(device).unwrap().to_dtype(dtype).unwrap()
        };
        let (output, gradients) = differentiate(run, &x, &[true], gradient);
        take_epilogues(true);
        (output, gradients[0].clone().unwrap())
    };
    let (wanted, wanted_gradient) = run(&Device::Cpu, DType::F32, [true; 2]);
    for (dtype, tolerance) in LINEAR_TOLERANCE {
        for taken in [[true, false], [false, true], [false, false], [true, true]] {
            let (output, gradient) = run(&device, dtype, taken);
            assert_near(&format!("feed-forward {dtype:?} {taken:?}"), &output, &wanted, tolerance);
            assert_near(&format!("feed-forward {dtype:?} {taken:?} gradient"), &gradient, &wanted_gradient, tolerance);
        }
    }
}
