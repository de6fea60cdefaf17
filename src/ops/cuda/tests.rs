//! Every operation's kernels against its loops for the CPU: values and gradients, in f32 and in bf16, odd sizes and
//! strides included. Where there is no CUDA device they say so and pass.
use super::Backward;
use super::adamw::{Settings, Update};
use super::attention::Bounds;
use crate::ops;
use crate::ops::function::{Function, apply};
use crate::ops::tests::{normal, some_feed_forward, values};
use candle_core::{DType, Device, Tensor, Var};

/// Largest difference, as a share of the largest value. In f32 only the order of sums differs. In bf16 the CPU computes
/// in f32 from the same rounded inputs; what differs is the rounding of probabilities and of results, each 2⁻⁹ of its
/// size, in attention's gradients three such steps in a row: 2⁻⁹ · 5 leaves room for sums that cancel.
const TOLERANCE: [(DType, f32); 2] = [(DType::F32, 1e-5), (DType::BF16, 1e-2)];

/// The first CUDA device; without one, says so, or fails where `REQUIRE_CUDA` is set.
pub fn device(what: &str) -> Option<Device> {
    match crate::system::device::open_cuda(0) {
        Ok(device) => Some(device),
        Err(error) => {
            assert!(std::env::var_os("REQUIRE_CUDA").is_none(), "REQUIRE_CUDA is set, and there is no GPU: {error}");
            println!("{what}: no CUDA device, not compared on one");
            None
        }
    }
}

fn assert_near(what: &str, got: &Tensor, wanted: &Tensor, tolerance: f32) {
    assert_eq!(got.dims(), wanted.dims(), "{what}");
    let got = values(&got.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap());
    let wanted = values(&wanted.to_dtype(DType::F32).unwrap());
    // Where all are zero but for rounding (the gradient of a softmax over one key) it is rounding of numbers near 1.
    let largest = wanted.iter().fold(1e-2f32, |most, v| most.max(v.abs()));
    for (got, wanted) in got.iter().zip(&wanted) {
        // Written so that a value that is no number fails.
        assert!((got - wanted).abs() <= tolerance * largest, "{what} on CUDA: {got}, not {wanted}, of {largest}");
    }
}

/// The output and the gradients of the inputs that `needs` names.
fn run<F: Function>(
    function: F,
    inputs: &[Tensor],
    needs: &[bool],
    device: &Device,
    dtype: DType,
) -> (Tensor, Vec<Option<Tensor>>) {
    let place = |t: &Tensor| t.to_device(device).unwrap().to_dtype(dtype).unwrap();
    let leaves: Vec<Tensor> = inputs
        .iter()
        .zip(needs)
        .map(|(t, need)| if *need { Var::from_tensor(&place(t)).unwrap().into_inner() } else { place(t) })
        .collect();
    let output = apply(function, &leaves.iter().collect::<Vec<_>>()).unwrap();
    // The gradient is rounded as bf16 would round it in every case, so that all see the same.
    let grad = normal(99, output.dims()).to_dtype(DType::BF16).unwrap().to_dtype(output.dtype()).unwrap();
    let grads = (&output * grad.to_device(device).unwrap()).unwrap().sum_all().unwrap().backward().unwrap();
    (output.detach(), leaves.iter().map(|leaf| grads.get(leaf).cloned()).collect())
}

fn compare<F: Function>(
    make: &impl Fn(&Device) -> F,
    inputs: &[Tensor],
    needs: &[bool],
    (dtype, tolerance): (DType, f32),
) {
    let Some(device) = device(F::NAME) else { return };
    let round = |t: &Tensor| t.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
    let inputs: Vec<Tensor> = inputs.iter().map(round).collect();
    let (output, grads) = run(make(&device), &inputs, needs, &device, dtype);
    let (wanted, wanted_grads) = run(make(&Device::Cpu), &inputs, needs, &Device::Cpu, DType::F32);
    assert_near(&format!("{} {dtype:?}", F::NAME), &output, &wanted, tolerance);
    for (i, (got, wanted)) in grads.iter().zip(&wanted_grads).enumerate().filter(|(i, _)| needs[*i]) {
        let (Some(got), Some(wanted)) = (got, wanted) else { panic!("{}: no gradient {i} on CUDA", F::NAME) };
        assert_near(&format!("{} {dtype:?} gradient {i}", F::NAME), got, wanted, tolerance);
    }
}

/// Compares in f32 what the tests of the CPU's loops compare; to 1e-4, as cuBLAS and composed forms sum otherwise.
pub fn check_f32<F: Function>(make: &impl Fn(&Device) -> F, inputs: &[Tensor], needs: &[bool]) {
    compare(make, inputs, needs, (DType::F32, 1e-4));
}

fn check<F: Function>(make: impl Fn(&Device) -> F, inputs: &[Tensor], needs: &[bool]) {
    for kind in TOLERANCE {
        compare(&make, inputs, needs, kind);
    }
}

#[test]
fn attention() {
    let sizes = [(2, 9, 13, 3, 20), (1, 150, 77, 2, 256), (1, 70, 201, 1, 1), (2, 129, 128, 2, 2), (1, 1, 40, 1, 1)];
    for (batch, queries, keys, heads, last_key_count) in sizes {
        for d in [32, 64, 128] {
            let (q, k) = (normal(1, &[batch, queries, heads * d]), normal(2, &[batch, keys, heads * d]));
            let v = normal(3, &[batch, keys, heads * d]);
            let make = |_: &Device| ops::attention::Attention::new(heads, last_key_count);
            check(make, &[q.clone(), k.clone(), v.clone()], &[true; 3]);
            check(make, &[q, k, v], &[true, false, false]);
        }
    }
}

/// What kernels compute does not depend on their launch bounds.
#[test]
fn attention_with_three_blocks() {
    let Some(device) = device("attention's launch bounds") else { return };
    let (heads, last_key_count) = (2, 9);
    let place =
        |seed, tokens| normal(seed, &[1, tokens, 128]).to_device(&device).unwrap().to_dtype(DType::BF16).unwrap();
    let (inputs, grad) = ([place(1, 150), place(2, 77), place(3, 77)], place(4, 150));
    let run = |bounds: Bounds| {
        let (output, kept) = super::attention::forward(&inputs, heads, last_key_count, bounds).unwrap().unwrap();
        let of = Backward { inputs: &inputs, output: &output, kept: &kept, grad: &grad, needs: &[true; 3] };
        let grads = super::attention::backward(&of, heads, last_key_count, bounds).unwrap().unwrap();
        let tensors = [vec![output, kept[0].clone()], grads.into_iter().flatten().collect()].concat();
        let host = |t: &Tensor| values(&t.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap());
        tensors.iter().map(host).collect::<Vec<_>>()
    };
    let (two, three) = (run(Bounds::Registers), run(Bounds::ThreeBlocks));
    assert!(two.len() == 5 && two == three, "attention depends on its launch bounds");
}

#[test]
fn attention_probability() {
    for (batch, queries, keys, heads, last_key_count, range) in
        [(2, 9, 13, 3, 20, 2..11), (1, 150, 97, 2, 256, 10..87), (1, 70, 130, 1, 1, 60..130)]
    {
        for d in [32, 64] {
            let inputs = [normal(1, &[batch, queries, heads * d]), normal(2, &[batch, keys, heads * d])];
            let make = |_: &Device| ops::attention::Probability { heads, range: range.clone(), last_key_count };
            check(make, &inputs, &[true; 2]);
        }
    }
}

#[test]
fn norms() {
    for (batch, tokens, width) in [(2, 3, 37), (3, 50, 64), (2, 9, 1536), (1, 5, 96)] {
        let x = (normal(1, &[batch, tokens, width]) * 3.0).unwrap();
        let inputs = [x.clone(), normal(2, &[batch, width]), normal(3, &[batch, width])];
        check(|_| ops::norm::LayerNormModulate, &inputs, &[true, false, false]);
        let weight = normal(4, &[width]).to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        check(|device| ops::norm::RmsNorm { weight: weight.to_device(device).unwrap() }, &[x], &[true]);
    }
}

#[test]
fn pointwise() {
    for shape in [[1, 1, 3], [2, 5, 33], [2, 70, 128]] {
        let (x, y) = ((normal(1, &shape) * 3.0).unwrap(), normal(2, &shape));
        let gate = normal(3, &[shape[0], shape[2]]);
        check(|_| ops::pointwise::Gelu, std::slice::from_ref(&x), &[true]);
        check(|_| ops::pointwise::GatedResidual, &[x, y, gate], &[true, true, false]);
    }
}

#[test]
fn linear() {
    for (rows, inner, outer, rank) in [(7, 13, 5, 3), (129, 64, 200, 16)] {
        let rounded =
            |seed, shape: &[usize]| normal(seed, shape).to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        let make = |device: &Device| ops::linear::Linear {
            weight: rounded(1, &[outer, inner]).to_device(device).unwrap(),
            bias: Some(rounded(2, &[outer]).to_device(device).unwrap()),
            scale: 0.5,
        };
        let inputs = [normal(3, &[rows, inner]), normal(4, &[rank, inner]), normal(5, &[outer, rank])];
        // Four products in a row, each rounded: twice the tolerance in bf16.
        for kind in [(DType::F32, 1e-5), (DType::BF16, 2e-2)] {
            compare(&make, &inputs, &[true; 3], kind);
            compare(&make, &inputs, &[false, true, true], kind);
            compare(&make, &inputs[..1], &[true], kind);
        }
    }
}

#[test]
fn feed_forward() {
    for (batch, tokens, width, hidden) in [(2, 3, 5, 7), (1, 40, 64, 256)] {
        let rounded =
            |seed, shape: &[usize]| normal(seed, shape).to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        for bias in [false, true] {
            let make = |device: &Device| {
                let on = |seed, shape: &[usize]| rounded(seed, shape).to_device(device).unwrap();
                // A power of two, so that weights stay numbers of bf16.
                some_feed_forward((batch, width, hidden), bias, on, |_| 0.125)
            };
            // Two products in a row, and the norm's rounding before them.
            for kind in [(DType::F32, 1e-5), (DType::BF16, 2e-2)] {
                compare(&make, &[normal(8, &[batch, tokens, width])], &[true], kind);
            }
        }
    }
}

/// Views that are not contiguous, and views that begin where sixteen bytes do not divide the address.
#[test]
fn any_strides_and_offsets() {
    let Some(device) = device("strides and offsets") else { return };
    let place = |t: &Tensor| t.to_device(&device).unwrap();
    let x = normal(1, &[5, 3, 33]);
    for view in [|x: &Tensor| x.transpose(0, 1).unwrap(), |x: &Tensor| x.narrow(0, 1, 3).unwrap()] {
        let wanted = ops::gelu(&view(&x)).unwrap();
        assert_near("gelu of a view", &ops::gelu(&view(&place(&x))).unwrap(), &wanted, 1e-5);
    }
    let flat = normal(2, &[3 * 2 * 5 * 64 + 1]);
    let parts = |flat: &Tensor| -> Vec<Tensor> {
        (0..3).map(|i| flat.narrow(0, 1 + i * 640, 640).unwrap().reshape((2, 5, 64)).unwrap()).collect()
    };
    let attend = |parts: &[Tensor]| ops::attention(&parts[0], &parts[1], &parts[2], 2, 3).unwrap();
    assert_near("attention at an odd address", &attend(&parts(&place(&flat))), &attend(&parts(&flat)), 1e-5);
}

/// The same bits, however often.
#[test]
fn gradients_are_reproducible() {
    let Some(device) = device("reproducibility") else { return };
    let inputs: Vec<Tensor> = (0..3).map(|seed| normal(seed, &[2, 300, 128])).collect();
    let run = || {
        let attention = ops::attention::Attention::new(2, 5);
        let (output, grads) = run(attention, &inputs, &[true; 3], &device, DType::BF16);
        let host = |t: &Tensor| values(&t.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap());
        (host(&output), grads.iter().flatten().map(host).collect::<Vec<_>>())
    };
    let first = run();
    for _ in 0..5 {
        assert!(run() == first, "attention gives other bits");
    }
}

#[test]
fn match_cost() {
    let Some(device) = device("match cost") else { return };
    for (maps, positions, masks) in [(3, 35, 1), (40, 300, 16), (9, 256, 37)] {
        let logits = (normal(1, &[maps, positions]) * 2.0).unwrap();
        let held = normal(2, &[masks, positions]).ge(0.0).unwrap().to_dtype(DType::F32).unwrap();
        for raw_logit in [false, true] {
            let cost = |logits: &Tensor| {
                let costs = ops::match_cost(logits, &held, (0.02, 1.0), raw_logit).unwrap().wait().unwrap().concat();
                Tensor::from_vec(costs, (maps, masks), &Device::Cpu).unwrap()
            };
            assert_near("match cost", &cost(&logits.to_device(&device).unwrap()), &cost(&logits), 1e-5);
        }
    }
}

/// Kernels that were told one product against the rounded factors' on the CPU, and those against exact products. Of the
/// second comparison the tolerance is bf16's: 2⁻⁹ for each of two factors, and sums that cancel.
#[test]
fn score_head_in_bf16() {
    let head = |precision| ops::score_head::ScoreHead(precision);
    let parameters: Vec<Tensor> = ops::PARAMETERS
        .iter()
        .enumerate()
        .map(|(i, (_, shape))| (normal(i as u64, shape) * 0.2).unwrap().flatten_all().unwrap())
        .collect();
    for (maps, h, w) in [(1, 1, 1), (3, 4, 7), (2, 9, 35)] {
        let inputs = [normal(9, &[maps, h, w]), Tensor::cat(&parameters, 0).unwrap()];
        let on_cpu = |precision| head(precision).composed(&inputs).unwrap();
        let (rounded, exact) = (on_cpu(ops::Precision::Bf16), on_cpu(ops::Precision::F32));
        assert_near("one product on the CPU, not", &rounded, &exact, 4e-3);
        compare(&|_: &Device| head(ops::Precision::Bf16), &inputs, &[true; 2], (DType::F32, 1e-4));
    }
}

/// One step of two parameters, of which one is more than a block's piece, against the formula in f64.
#[test]
fn adamw() {
    let Some(device) = device("AdamW") else { return };
    let settings = Settings { betas: [0.9, 0.999], eps: 1e-8 };
    let shapes = [[37, 5], [90, 101]];
    let host = shapes.map(|shape| [1, 2, 3, 4].map(|seed| normal(seed, &shape).abs().unwrap()));
    let placed = host.each_ref().map(|of| of.each_ref().map(|t| t.to_device(&device).unwrap()));
    fn update([parameter, gradient, first, second]: &[Tensor; 4], rate: f64, keep: f64) -> Update<'_> {
        Update { parameter, gradient, first, second, rate, spread: 0.05, keep }
    }
    super::adamw::step(&[update(&placed[0], 0.02, 0.999), update(&placed[1], 0.3, 1.0)], &settings).unwrap();
    for (((host, placed), shape), (rate, keep)) in host.iter().zip(&placed).zip(shapes).zip([(0.02, 0.999), (0.3, 1.0)])
    {
        let of = |i: usize| values(&host[i]).into_iter().map(f64::from).collect::<Vec<_>>();
        let [p, g, m, v] = [0, 1, 2, 3].map(of);
        let first: Vec<f64> = (0..p.len()).map(|i| 0.9 * m[i] + 0.1 * g[i]).collect();
        let second: Vec<f64> = (0..p.len()).map(|i| 0.999 * v[i] + 0.001 * g[i].powi(2)).collect();
        let moved = |i: usize| p[i] * keep - rate * first[i] / (second[i].sqrt() / 0.05 + 1e-8);
        let wanted = [(0..p.len()).map(moved).collect(), first.clone(), second.clone()];
        for ((what, got), wanted) in ["AdamW", "first moment", "second"].iter().zip([0, 2, 3]).zip(wanted) {
            let wanted = wanted.iter().map(|value: &f64| *value as f32).collect();
            assert_near(what, &placed[got], &Tensor::from_vec(wanted, &shape, &Device::Cpu).unwrap(), 1e-5);
        }
    }
}

/// The norm of several gradients, in pieces of a block's, against sums in f64; not a number where one is none.
#[test]
fn gradient_norm() {
    let Some(device) = device("gradient norm") else { return };
    let host = [normal(1, &[37, 5]), normal(2, &[90, 101]), normal(3, &[1])];
    let squares: f64 = host.iter().flat_map(values).map(|value| f64::from(value).powi(2)).sum();
    let mut gradients: Vec<Tensor> = host.iter().map(|t| t.to_device(&device).unwrap()).collect();
    let norm = crate::ops::sum_of_squares(&gradients).unwrap().sqrt();
    assert!((norm / squares.sqrt() - 1.0).abs() < 1e-6, "{norm}, not {}", squares.sqrt());
    gradients.push(Tensor::new(&[f32::NAN, 1.0], &device).unwrap());
    assert!(!crate::ops::sum_of_squares(&gradients).unwrap().is_finite());
}
