//! Quantised weights: what is written out, and that operations multiply with that.
use super::FrozenWeight;
use crate::autograd::Variable;
use crate::config::{Choice, Quantization};
use crate::ops::tests::helpers::{differentiate, normal, values};
use crate::ops::{FrozenLayer, Layer, LowRank, Modulation, feed_forward, linear};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor};
use std::sync::Arc;

const FORMATS: [Quantization; 4] = [Quantization::Q8_0, Quantization::Q6K, Quantization::Q4K, Quantization::F8];

fn quantized(weight: &Tensor, format: Quantization) -> FrozenWeight {
    FrozenWeight::quantize(weight, format, DType::BF16, &Device::Cpu).unwrap()
}

/// The same values, dense.
fn dense(weight: &FrozenWeight) -> FrozenWeight {
    weight.in_type(DType::F32).unwrap().into()
}

/// Rows of different sizes, one of zeros. (Of blocks with values below 1e-3 the step, an f16, is rounded more coarsely.)
fn weight(outer: usize, inner: usize) -> Tensor {
    let sizes: Vec<f32> = (0..outer).map(|row| if row == 1 { 0.0 } else { 10f32.powi(row as i32 % 4 - 1) }).collect();
    normal(1, &[outer, inner]).broadcast_mul(&Tensor::from_vec(sizes, (outer, 1), &Device::Cpu).unwrap()).unwrap()
}

#[test]
fn rounding_is_that_of_the_format() {
    let original = weight(40, 512);
    // Steps from the smallest to the largest value of a block (llama.cpp's k-quants), halved; of 8-bit numbers the mantissa's
    // last place, halved, or that of the smallest numbers.
    for (format, of_largest, of_value) in [
        (Quantization::Q8_0, 0.5 / 127.0, 1e-3),
        (Quantization::Q6K, 1.2 / 32.0, 0.0),
        (Quantization::Q4K, 2.2 / 15.0, 0.0),
        (Quantization::F8, 2f32.powi(-10) / 448.0, 1.0 / 16.0),
    ] {
        let kept = quantized(&original, format);
        assert!(kept.is_quantized());
        assert_eq!(kept.bytes(), format.bytes((40, 512), 4), "{}", format.name());
        let written = values(&kept.in_type(DType::F32).unwrap());
        for (got, wanted) in written.chunks(512).zip(values(&original).chunks(512)) {
            let largest = wanted.iter().fold(0f32, |most, value| most.max(value.abs()));
            for (got, wanted) in got.iter().zip(wanted) {
                let tolerance = of_largest * largest + of_value * wanted.abs();
                assert!((got - wanted).abs() <= tolerance, "{}: {got}, not {wanted}, of {largest}", format.name());
            }
        }
    }
}

#[test]
fn blocks_are_candles() {
    let original = weight(7, 512);
    for block in [GgmlDType::Q8_0, GgmlDType::Q6K, GgmlDType::Q4K, GgmlDType::Q5K, GgmlDType::Q4_0, GgmlDType::Q3K] {
        let whole = Arc::new(QTensor::quantize(&original, block).unwrap());
        let kept = FrozenWeight::of_blocks(whole.clone(), DType::F32).unwrap();
        let candles = values(&whole.dequantize(&Device::Cpu).unwrap());
        assert_eq!(values(&kept.in_type(DType::F32).unwrap()), candles, "{block:?}");
        let own = super::blocks::quantize(&original, block, &Device::Cpu).unwrap();
        assert_eq!(own.data().unwrap(), whole.data().unwrap(), "{block:?}");
    }
    let numbers = quantized(&original, Quantization::F8);
    let super::Kept::Float8(numbers) = &numbers.kept else { panic!("8-bit numbers") };
    let candles = numbers.values.to_dtype(DType::F32).unwrap().broadcast_mul(&numbers.scales).unwrap();
    assert_eq!(values(&numbers.dequantize().unwrap()), values(&candles));
}

#[test]
fn rows_that_are_no_whole_blocks_take_smaller_blocks_or_none() {
    assert_eq!(Quantization::Q4K.fitting(512), Some(Quantization::Q4K));
    assert_eq!(Quantization::Q4K.fitting(96), Some(Quantization::Q8_0));
    assert_eq!(Quantization::Q6K.fitting(40), None);
    assert_eq!(Quantization::F8.fitting(40), Some(Quantization::F8));
    assert_eq!(Quantization::Q4K.bytes((3, 96), 2), 3 * 3 * 34);
    assert_eq!(Quantization::Q4K.bytes((3, 40), 2), 3 * 40 * 2);
    let odd = quantized(&weight(3, 40), Quantization::Q6K);
    assert_eq!((odd.is_quantized(), odd.dtype(), odd.bytes()), (false, DType::BF16, 3 * 40 * 2));
}

/// Projections with and without an adapter, merged or not, and both forms of the feed-forward.
#[test]
fn operations_are_those_of_the_dequantised_weights() {
    fn layer(weight: &FrozenWeight, seed: u64) -> FrozenLayer {
        FrozenLayer { weight: weight.clone(), bias: Some(normal(seed, &[weight.dims()[0]])) }
    }
    for format in FORMATS {
        for (rows, rank) in [(1, 2), (150, 4), (60, 40)] {
            let kept = quantized(&weight(256, 512), format);
            let run = |weight: &FrozenWeight| {
                let inputs = [normal(3, &[rows, 512]), normal(4, &[rank, 512]), normal(5, &[256, rank])];
                let adapted = |inputs: &[Variable]| -> Result<Variable> {
                    let low_rank = LowRank { down: inputs[1].clone(), up: inputs[2].clone(), scale: 0.5 };
                    linear(&inputs[0], Layer { frozen: &layer(weight, 6), low_rank: Some(&low_rank) })
                };
                differentiate(adapted, &inputs, &[true; 3], |output| normal(9, output.dims()))
            };
            assert_equal(run(&kept), run(&dense(&kept)), format);
        }
        for (width, hidden) in [(256, 512), (512, 1024)] {
            let scaled = |outer, inner| (normal(2, &[outer, inner]) * (inner as f64).powf(-0.5)).unwrap();
            let up = quantized(&scaled(hidden, width), format);
            let down = quantized(&scaled(width, hidden), format);
            let run = |up: &FrozenWeight, down: &FrozenWeight| {
                let [shift, scale, gate] = [1, 2, 3].map(|seed| normal(seed, &[2, width]));
                let modulation = Modulation { shift: &shift, scale: &scale, gate: &gate };
                let forward = |x: &[Variable]| feed_forward(&x[0], modulation, layer(up, 5), layer(down, 7));
                differentiate(forward, &[normal(8, &[2, 40, width])], &[true], |output| normal(9, output.dims()))
            };
            assert_equal(run(&up, &down), run(&dense(&up), &dense(&down)), format);
        }
    }
}

/// What kernels write, in f32 and bf16, and products with that.
#[cfg(feature = "cuda")]
#[test]
fn on_a_gpu_they_are_those_of_the_cpu() {
    use crate::ops::tests::cuda::{assert_near, check_f32, device};
    let Some(device) = device("quantised weights") else { return };
    for format in FORMATS {
        // Threads of the last block have nothing to do.
        let original = weight(5, 768);
        let on_gpu = FrozenWeight::quantize(&original, format, DType::BF16, &device).unwrap();
        let on_cpu = quantized(&original, format);
        assert_eq!((on_gpu.dims(), on_gpu.bytes()), (on_cpu.dims(), on_cpu.bytes()));
        assert!(on_gpu.device().is_cuda());
        let wanted = on_cpu.in_type(DType::F32).unwrap();
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::BF16, 4e-3)] {
            let got = on_gpu.in_type(dtype).unwrap();
            assert_eq!(got.dtype(), dtype);
            assert_near(format.name(), &got, &wanted, tolerance);
        }
        let run = |device: &Device, inputs: &[Variable]| {
            let weight = FrozenWeight::quantize(&original, format, DType::F32, device)?;
            linear(&inputs[0], Layer { frozen: &FrozenLayer { weight, bias: None }, low_rank: None })
        };
        check_f32(format.name(), &run, &[normal(2, &[9, 768])], &[true]);
    }
}

type Outcome = (Tensor, Vec<Option<Tensor>>);

fn assert_equal(got: Outcome, wanted: Outcome, format: Quantization) {
    assert_eq!(values(&got.0), values(&wanted.0), "{}", format.name());
    for (got, wanted) in got.1.iter().zip(&wanted.1) {
        assert_eq!(got.as_ref().map(values), wanted.as_ref().map(values), "{}: gradients", format.name());
    }
}
