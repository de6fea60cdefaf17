//! Every operation's kernels against its loops for the CPU: values and gradients, in f32 and in bf16, odd sizes and
//! strides included. Where there is no CUDA device they say so and pass.
use super::helpers::{Run, adapted, differentiate, normal, some_feed_forward, values};
use crate::autograd::{Variable, backward};
use crate::kernels::cuda::adamw::{Update, step};
use crate::kernels::cuda::add::add_in_place;
use crate::ops;
use crate::ops::backend::Reference;
use candle_core::{DType, Device, Result, Tensor};

/// Largest difference, as a share of the largest value. In f32 only the order of sums differs. In bf16 the CPU computes
/// in f32 from the same rounded inputs; what differs is the rounding of probabilities and of results, each 2⁻⁹ of its
/// size, in attention's gradients three such steps in a row: 2⁻⁹ · 5 leaves room for sums that cancel.
pub const TOLERANCE: [(DType, f32); 2] = [(DType::F32, 1e-5), (DType::BF16, 1e-2)];

/// The first CUDA device; without one, says so, or fails where `REQUIRE_CUDA` is set.
pub fn device(what: &str) -> Option<Device> {
    match crate::ops::device::open_cuda(0) {
        Ok(device) => Some(device),
        Err(error) => {
            assert!(std::env::var_os("REQUIRE_CUDA").is_none(), "REQUIRE_CUDA is set, and there is no GPU: {error}");
            println!("{what}: no CUDA device, not compared on one");
            None
        }
    }
}

pub fn assert_near(what: &str, got: &Tensor, wanted: &Tensor, tolerance: f32) {
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

/// Rounded as bf16 would round it, so that all see the same.
pub fn rounded(tensor: &Tensor) -> Tensor {
    tensor.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap()
}

/// The output and the gradients of the inputs that `needs` names.
fn run_on(run: Run, inputs: &[Tensor], needs: &[bool], device: &Device, dtype: DType) -> (Tensor, Vec<Option<Tensor>>) {
    let inputs: Vec<Tensor> =
        inputs.iter().map(|input| input.to_device(device).unwrap().to_dtype(dtype).unwrap()).collect();
    let gradient = |output: &Tensor| {
        rounded(&normal(99, output.dims())).to_device(device).unwrap().to_dtype(output.dtype()).unwrap()
    };
    differentiate(|variables| run(device, variables), &inputs, needs, gradient)
}

fn compare(what: &str, run: Run, inputs: &[Tensor], needs: &[bool], (dtype, tolerance): (DType, f32)) {
    let Some(device) = device(what) else { return };
    let round = |t: &Tensor| t.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
    let inputs: Vec<Tensor> = inputs.iter().map(round).collect();
    let (output, gradients) = run_on(run, &inputs, needs, &device, dtype);
    let (wanted, wanted_gradients) = run_on(run, &inputs, needs, &Device::Cpu, DType::F32);
    assert_near(&format!("{what} {dtype:?}"), &output, &wanted, tolerance);
    for (i, (got, wanted)) in gradients.iter().zip(&wanted_gradients).enumerate() {
        match (got, wanted) {
            (Some(got), Some(wanted)) => assert_near(&format!("{what} {dtype:?} gradient {i}"), got, wanted, tolerance),
            (got, wanted) => assert_eq!(got.is_some(), wanted.is_some(), "{what} {dtype:?} gradient {i}"),
        }
    }
}

/// Compares in f32 what the tests of the CPU's loops compare; to 1e-4, as cuBLAS and reference implementations sum otherwise.
pub fn check_f32(what: &str, run: Run, inputs: &[Tensor], needs: &[bool]) {
    compare(what, run, inputs, needs, (DType::F32, 1e-4));
}

fn check(what: &str, run: Run, inputs: &[Tensor], needs: &[bool]) {
    for kind in TOLERANCE {
        compare(what, run, inputs, needs, kind);
    }
}

/// A layer of weights that are numbers of bf16, on a device.
fn layer(device: &Device, seed: u64, outer: usize, inner: usize) -> ops::FrozenLayer {
    let on = |seed, shape: &[usize]| rounded(&normal(seed, shape)).to_device(device).unwrap();
    ops::FrozenLayer { weight: on(seed, &[outer, inner]).into(), bias: Some(on(seed + 1, &[outer])) }
}

#[test]
fn attention() {
    let sizes = [(2, 9, 13, 3, 20), (1, 150, 75, 2, 256), (1, 70, 201, 1, 1), (2, 129, 128, 2, 2), (1, 1, 40, 1, 1)];
    for (batch, queries, keys, heads, last_key_count) in sizes {
        for d in [32, 64, 128] {
            let (q, k) = (normal(1, &[batch, queries, heads * d]), normal(2, &[batch, keys, heads * d]));
            let v = normal(3, &[batch, keys, heads * d]);
            let run: Run = &|_, i| ops::attention(&i[0], &i[1], &i[2], heads, last_key_count);
            check("attention", run, &[q.clone(), k.clone(), v.clone()], &[true; 3]);
            check("attention", run, &[q, k, v], &[true, false, false]);
        }
    }
}

#[test]
fn attention_probability() {
    for (batch, queries, keys, heads, last_key_count, range) in
        [(2, 9, 13, 3, 20, 2..11), (1, 150, 97, 2, 256, 10..87), (1, 70, 130, 1, 1, 60..130)]
    {
        for d in [32, 64] {
            let inputs = [normal(1, &[batch, queries, heads * d]), normal(2, &[batch, keys, heads * d])];
            let run: Run = &|_, i| ops::attention_probability(&i[0], &i[1], heads, range.clone(), last_key_count);
            check("attention probability", run, &inputs, &[true; 2]);
        }
    }
}

#[test]
fn rotary_positions() {
    for (batch, grid, text, heads, axes) in [(2, (3, 5), 4, 3, [2, 4, 4]), (1, (8, 7), 9, 2, [16, 56, 56])] {
        let width = heads * axes.iter().sum::<usize>();
        let x = normal(1, &[batch, grid.0 * grid.1 + text, width]);
        let run: Run = &|device, i| ops::rotary(&i[0], &ops::RotaryTable::of_grid(grid, axes, 10_000.0, device)?);
        check("rotary", run, &[x], &[true]);
    }
}

#[test]
fn norms() {
    for (batch, tokens, width) in [(2, 3, 37), (3, 50, 64), (2, 9, 1536), (1, 5, 96)] {
        let x = (normal(1, &[batch, tokens, width]) * 3.0).unwrap();
        let inputs = [x, normal(2, &[batch, width]), normal(3, &[batch, width])];
        let run: Run = &|_, i| ops::layer_norm_modulate(&i[0], &i[1], &i[2]);
        check("layer norm", run, &inputs, &[true, false, false]);
        for heads in [1, 3] {
            let x = (normal(5, &[batch, tokens + 2, heads * width]) * 3.0).unwrap();
            let run: Run = &|device, i| {
                let weight = |seed| rounded(&normal(seed, &[width])).to_device(device);
                ops::rms_norm(&i[0], vec![(tokens, weight(4)?), (2, weight(6)?)])
            };
            check("rms norm", run, &[x], &[true]);
        }
    }
}

#[test]
fn pointwise() {
    for shape in [[1, 1, 3], [2, 5, 33], [2, 70, 128]] {
        let (x, y) = ((normal(1, &shape) * 3.0).unwrap(), normal(2, &shape));
        let gate = normal(3, &[shape[0], shape[2]]);
        check("gelu", &|_, i| ops::gelu(&i[0]), std::slice::from_ref(&x), &[true]);
        let halves = Tensor::cat(&[&x, &y], 2).unwrap();
        check("swiglu", &|_, i| ops::swiglu(&i[0]), &[halves], &[true]);
        let run: Run = &|_, i| ops::gated_residual(&i[0], &i[1], &i[2]);
        check("gated residual", run, &[x, y, gate], &[true, true, false]);
    }
}

/// Several products in a row, each rounded: twice the tolerance in bf16.
pub const LINEAR_TOLERANCE: [(DType, f32); 2] = [(DType::F32, 1e-5), (DType::BF16, 2e-2)];

#[test]
fn linear() {
    for (rows, inner, outer, rank) in [(7, 13, 5, 3), (129, 64, 200, 16)] {
        let run: Run = &|device, inputs| adapted(inputs, &layer(device, 1, outer, inner), 0.5);
        let inputs = [normal(3, &[rows, inner]), normal(4, &[rank, inner]), normal(5, &[outer, rank])];
        for kind in LINEAR_TOLERANCE {
            compare("linear", run, &inputs, &[true; 3], kind);
            compare("linear", run, &inputs, &[false, true, true], kind);
            compare("linear", run, &inputs[..1], &[true], kind);
        }
    }
}

/// Two sequences into one, and windows of one sequence, whose gradients meet in one tensor.
#[test]
fn linear_joins_and_takes_windows() {
    for (batch, tokens, inner, outer, rank) in [(1, [3, 2], 5, 7, 2), (3, [70, 21], 40, 24, 4)] {
        let adapter = |inputs: &[Variable], number: usize| ops::LowRank {
            down: inputs[2 * number].clone(),
            up: inputs[2 * number + 1].clone(),
            scale: 0.5,
        };
        let joint: Run = &|device, inputs| {
            let frozen = [1, 3].map(|seed| layer(device, seed, outer, inner));
            let low_rank = [adapter(inputs, 1), adapter(inputs, 2)];
            let of = |number: usize| ops::Layer { frozen: &frozen[number], low_rank: Some(&low_rank[number]) };
            ops::joint_linear(&[(&inputs[0], of(0)), (&inputs[1], of(1))])
        };
        let windows: Run = &|device, inputs| {
            let frozen = [1, 3].map(|seed| layer(device, seed, outer, inner));
            let low_rank = [adapter(&inputs[1..], 0), adapter(&inputs[1..], 1)];
            let of = |number: usize| ops::Layer { frozen: &frozen[number], low_rank: Some(&low_rank[number]) };
            let image = ops::linear_of_window(&inputs[0], 0..tokens[0], of(0))?;
            let text = ops::linear_of_window(&inputs[0], tokens[0]..tokens[0] + tokens[1], of(1))?;
            ops::cat(&[image, text], 1)
        };
        let adapters = [[rank, inner], [outer, rank], [rank, inner], [outer, rank]];
        let adapters: Vec<Tensor> = adapters.iter().zip(30..).map(|(shape, seed)| normal(seed, shape)).collect();
        let of_joint = [normal(20, &[batch, tokens[0], inner]), normal(21, &[batch, tokens[1], inner])];
        let of_windows = [normal(22, &[batch, tokens[0] + tokens[1], inner])];
        for kind in LINEAR_TOLERANCE {
            compare("joint linear", joint, &[&of_joint[..], &adapters].concat(), &[true; 6], kind);
            compare("linear of windows", windows, &[&of_windows[..], &adapters].concat(), &[true; 5], kind);
        }
    }
}

/// Gradients that are written into memory of their own, and added there by a second pass.
#[test]
fn gradients_reach_their_memory() {
    let Some(device) = device("gradients in place") else { return };
    let (inner, outer, rank) = (24, 40, 8);
    let on = |seed, shape: &[usize]| normal(seed, shape).to_device(&device).unwrap();
    for dtype in [DType::F32, DType::BF16] {
        let x = Variable::constant(on(1, &[3, 9, inner]).to_dtype(dtype).unwrap());
        let memory =
            [Tensor::zeros((rank, inner), DType::F32, &device), Tensor::zeros((outer, rank), DType::F32, &device)]
                .map(Result::unwrap);
        let pass = |down: &Variable, up: &Variable| {
            let low_rank = ops::LowRank { down: down.clone(), up: up.clone(), scale: 0.5 };
            let frozen = layer(&device, 4, outer, inner);
            let y = ops::linear(&x, ops::Layer { frozen: &frozen, low_rank: Some(&low_rank) }).unwrap();
            let gradient = on(6, &[3, 9, outer]).to_dtype(dtype).unwrap();
            backward([(y, gradient)]).unwrap();
        };
        let (down, up) = (on(2, &[rank, inner]), on(3, &[outer, rank]));
        let plain = [Variable::leaf(down.clone()), Variable::leaf(up.clone())];
        pass(&plain[0], &plain[1]);
        let placed = [Variable::leaf(down), Variable::leaf(up)];
        placed.iter().zip(&memory).for_each(|(leaf, memory)| leaf.write_gradient_to(memory.clone()));
        pass(&placed[0], &placed[1]);
        let host = |t: &Tensor| t.to_device(&Device::Cpu).unwrap();
        let once: Vec<Tensor> = plain.iter().map(|leaf| host(&leaf.take_gradient().unwrap())).collect();
        assert!(once.iter().zip(&memory).all(|(once, memory)| values(once) == values(&host(memory))), "{dtype:?}");
        pass(&placed[0], &placed[1]);
        for (once, memory) in once.iter().zip(&memory) {
            assert_near("twice the gradient", memory, &(once * 2.0).unwrap(), 1e-5);
        }
    }
}

#[test]
fn sums_in_place() {
    let Some(device) = device("sums in place") else { return };
    for (to, from) in [(DType::F32, DType::F32), (DType::F32, DType::BF16), (DType::BF16, DType::BF16)] {
        for count in [5, 64] {
            let [sum, part] = [1, 2].map(|seed| rounded(&normal(seed, &[3, count])));
            let [of_sum, of_part] = [(&sum, to), (&part, from)].map(|(t, dtype)| t.to_device(&device)?.to_dtype(dtype));
            let (of_sum, of_part) = (of_sum.unwrap(), of_part.unwrap());
            assert!(add_in_place(&of_sum, &of_part).unwrap());
            let wanted = (sum + part).unwrap().to_dtype(to).unwrap();
            assert_near("a sum", &of_sum, &wanted, if to == DType::F32 { 1e-6 } else { 1e-2 });
        }
    }
}

#[test]
fn feed_forward() {
    // The first has no epilogue, being no multiple of eight wide.
    for (batch, tokens, width, hidden) in [(2, 3, 5, 7), (1, 40, 64, 256), (2, 20, 64, 256)] {
        for bias in [false, true] {
            let run: Run = &|device, i| {
                let on = |seed, shape: &[usize]| rounded(&normal(seed, shape)).to_device(device).unwrap();
                // A power of two, so that weights stay numbers of bf16.
                some_feed_forward(&i[0], (batch, width, hidden), bias, on, |_| 0.125)
            };
            // Two products in a row, and the norm's rounding before them.
            for kind in LINEAR_TOLERANCE {
                compare("feed-forward", run, &[normal(8, &[batch, tokens, width])], &[true], kind);
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
        let gelu = |x: &Tensor| ops::gelu(&view(x).into()).unwrap().into_tensor();
        assert_near("gelu of a view", &gelu(&place(&x)), &gelu(&x), 1e-5);
    }
    let flat = normal(2, &[3 * 2 * 5 * 64 + 1]);
    let parts = |flat: &Tensor| -> Vec<Variable> {
        (0..3).map(|i| flat.narrow(0, 1 + i * 640, 640).unwrap().reshape((2, 5, 64)).unwrap().into()).collect()
    };
    let attend = |parts: &[Variable]| ops::attention(&parts[0], &parts[1], &parts[2], 2, 3).unwrap().into_tensor();
    assert_near("attention at an odd address", &attend(&parts(&place(&flat))), &attend(&parts(&flat)), 1e-5);
}

/// The same bits, however often.
#[test]
fn gradients_are_reproducible() {
    let Some(device) = device("reproducibility") else { return };
    let inputs: Vec<Tensor> = (0..3).map(|seed| normal(seed, &[2, 300, 128])).collect();
    let attention: Run = &|_, i| ops::attention(&i[0], &i[1], &i[2], 2, 5);
    let feed_forward: Run = &|device, i| {
        let on = |seed, shape: &[usize]| rounded(&normal(seed, shape)).to_device(device).unwrap();
        some_feed_forward(&i[0], (2, 128, 512), true, on, |_| 0.125)
    };
    for (what, run, inputs) in [("attention", attention, &inputs[..]), ("feed-forward", feed_forward, &inputs[..1])] {
        let run = || {
            let (output, gradients) = run_on(run, inputs, &vec![true; inputs.len()], &device, DType::BF16);
            let host = |t: &Tensor| values(&t.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap());
            (host(&output), gradients.iter().flatten().map(host).collect::<Vec<_>>())
        };
        let first = run();
        for _ in 0..5 {
            assert!(run() == first, "{what} gives other bits");
        }
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
    let parameters: Vec<Tensor> =
        ops::PARAMETERS.iter().enumerate().map(|(i, (_, shape))| (normal(i as u64, shape) * 0.2).unwrap()).collect();
    let flat: Vec<Tensor> = parameters.iter().map(|parameter| parameter.flatten_all().unwrap()).collect();
    for (maps, h, w) in [(1, 1, 1), (3, 4, 7), (2, 9, 35)] {
        let maps = normal(9, &[maps, h, w]);
        let inputs = [maps.clone(), Tensor::cat(&flat, 0).unwrap()];
        let on_cpu = |precision| ops::score_head::ScoreHead(precision).reference(&inputs).unwrap();
        let (rounded, exact) = (on_cpu(ops::Precision::Bf16), on_cpu(ops::Precision::F32));
        assert_near("one product on the CPU, not", &rounded, &exact, 4e-3);
        let run: Run = &|_, i| ops::score_head(&i[0], &i[1..], ops::Precision::Bf16);
        compare("score head in bf16", run, &[vec![maps], parameters.clone()].concat(), &[true; 7], (DType::F32, 1e-4));
    }
}

/// One step of two parameters, of which one is more than a block's piece, against the formula in f64.
#[test]
fn adamw() {
    let Some(device) = device("AdamW") else { return };
    let shapes = [[37, 5], [90, 101]];
    let host = shapes.map(|shape| [1, 2, 3, 4].map(|seed| normal(seed, &shape).abs().unwrap()));
    let placed = host.each_ref().map(|of| of.each_ref().map(|t| t.to_device(&device).unwrap()));
    let update = |number: usize, rate, keep| Update { tensors: placed[number].clone(), factors: [rate, 0.05, keep] };
    step(&[update(0, 0.02, 0.999), update(1, 0.3, 1.0)], [0.9, 0.999], 1e-8).unwrap();
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
