//! Every operation's own loops against its reference implementation: values and gradients, odd shapes and strides, and the same
//! bits on one thread as on several.
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(feature = "cuda")]
mod epilogue;
pub(crate) mod helpers;

use super::attention::{Attention, Probability, Sizes};
use super::backend::Reference as _;
use super::mask_loss::MaskLoss;
use super::norm::{LayerNormModulate, RmsNorm};
use super::pixel_cross_entropy::PixelCrossEntropy;
use super::pointwise::GatedResidual;
use super::rotary::Rotary;
use super::score_head::{ScoreHead, products};
use super::*;
use crate::autograd::Variable;
use candle_core::{DType, Device, Result, Tensor, Var};
use helpers::{Reference, Run, adapted, differentiate, layer, normal, some_feed_forward, values};
use std::sync::Arc;

fn assert_close(what: &str, got: &Tensor, wanted: &Tensor) {
    assert_eq!(got.dims(), wanted.dims(), "{what}");
    let (got, wanted) = (values(got), values(wanted));
    let largest = wanted.iter().fold(0f32, |m, v| m.max(v.abs())).max(1e-6);
    let worst = got.iter().zip(&wanted).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst <= 1e-5 * largest, "{what}: off by {worst}, largest value {largest}");
}

/// Gradients of the reference by candle.
fn reference_gradients(
    reference: Reference,
    inputs: &[Tensor],
    needs: &[bool],
    gradient: &Tensor,
) -> Vec<Option<Tensor>> {
    let leaves: Vec<Tensor> = inputs
        .iter()
        .zip(needs)
        .map(|(input, need)| if *need { Var::from_tensor(input).unwrap().into_inner() } else { input.clone() })
        .collect();
    let found = (reference(&leaves).unwrap() * gradient).unwrap().sum_all().unwrap().backward().unwrap();
    let of = |(leaf, need): (&Tensor, &bool)| {
        need.then(|| found.get(leaf).cloned().unwrap_or_else(|| leaf.zeros_like().unwrap()))
    };
    leaves.iter().zip(needs).map(of).collect()
}

/// Values and gradients of an operation against its reference on the CPU, for the inputs that `needs` names.
fn check(what: &str, run: Run, reference: Reference, inputs: &[Tensor], needs: &[bool]) {
    #[cfg(feature = "cuda")]
    cuda::check_f32(what, run, inputs, needs);
    let on_cpu = || differentiate(|i| run(&Device::Cpu, i), inputs, needs, |output| normal(99, output.dims()));
    let (output, gradients) = on_cpu();
    assert_close(what, &output, &reference(inputs).unwrap());
    let wanted = reference_gradients(reference, inputs, needs, &normal(99, output.dims()));
    for (i, (got, wanted)) in gradients.iter().zip(&wanted).enumerate() {
        match (got, wanted) {
            (Some(got), Some(wanted)) => assert_close(&format!("{what} gradient {i}"), got, wanted),
            (got, wanted) => assert_eq!(got.is_some(), wanted.is_some(), "{what} gradient {i}"),
        }
    }
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let three = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let (a, b) = (one.install(on_cpu), three.install(on_cpu));
    assert_eq!(values(&a.0), values(&b.0), "{what}: threads change the result");
    for (a, b) in a.1.iter().zip(&b.1) {
        assert_eq!(a.as_ref().map(values), b.as_ref().map(values), "{what}: threads change a gradient");
    }
}

/// [`adapted`] in candle's operations.
fn adapted_reference(inputs: &[Tensor], frozen: &FrozenLayer, scale: f64) -> Result<Tensor> {
    let y = inputs[0]
        .broadcast_matmul(&frozen.weight.in_type(DType::F32)?.t()?)?
        .broadcast_add(frozen.bias.as_ref().unwrap())?;
    match inputs {
        [x, down, up] => y + (x.broadcast_matmul(&down.t()?)?.broadcast_matmul(&up.t()?)? * scale)?,
        _ => Ok(y),
    }
}

#[test]
fn linear_with_and_without_adapter() {
    // The adapter is merged into the weight in the third, and not in the last.
    for (rows, inner, outer, rank) in [(1, 1, 1, 1), (7, 13, 5, 3), (129, 64, 200, 16), (45, 130, 300, 33)] {
        let run: Run = &|device, inputs| adapted(inputs, &layer(device, 1, outer, inner), 0.7);
        let reference: Reference = &|inputs| adapted_reference(inputs, &layer(&Device::Cpu, 1, outer, inner), 0.7);
        let inputs = [normal(3, &[rows, inner]), normal(4, &[rank, inner]), normal(5, &[outer, rank])];
        check("linear", run, reference, &inputs, &[true, true, true]);
        check("linear", run, reference, &inputs, &[false, true, true]);
        check("linear", run, reference, &inputs[..1], &[true]);
    }
}

/// Two sequences by a layer each into one, and of that the tokens of each by a layer again.
#[test]
fn linear_joins_and_takes_windows() {
    for (batch, tokens, width, rank) in [(1, [3, 2], 5, 2), (3, [70, 20], 40, 4), (2, [300, 75], 64, 33)] {
        let adapters = |inputs: &[Variable]| {
            [0, 1, 2, 3].map(|number| LowRank {
                down: inputs[2 + 2 * number].clone(),
                up: inputs[3 + 2 * number].clone(),
                scale: 0.3 + number as f64,
            })
        };
        let run: Run = &|device, inputs| {
            let frozen = [1, 3, 5, 7].map(|seed| layer(device, seed, width, width));
            let low_rank = adapters(inputs);
            let of = |number: usize| Layer { frozen: &frozen[number], low_rank: Some(&low_rank[number]) };
            let joint = joint_linear(&[(&inputs[0], of(0)), (&inputs[1], of(1))])?;
            let image = linear_of_window(&joint, 0..tokens[0], of(2))?;
            let text = linear_of_window(&joint, tokens[0]..tokens[0] + tokens[1], of(3))?;
            cat(&[image, text], 1)
        };
        let reference: Reference = &|inputs| {
            let of = |x: &Tensor, number: usize| {
                let inputs = [x.clone(), inputs[2 + 2 * number].clone(), inputs[3 + 2 * number].clone()];
                let frozen = layer(&Device::Cpu, 1 + 2 * number as u64, width, width);
                adapted_reference(&inputs, &frozen, 0.3 + number as f64)
            };
            Tensor::cat(&[of(&of(&inputs[0], 0)?, 2)?, of(&of(&inputs[1], 1)?, 3)?], 1)
        };
        let mut inputs: Vec<Tensor> =
            tokens.iter().zip(20..).map(|(tokens, seed)| normal(seed, &[batch, *tokens, width])).collect();
        for seed in 30..34 {
            let part = |seed, shape: &[usize]| (normal(seed, shape) * 0.2).unwrap();
            inputs.extend([part(seed, &[rank, width]), part(seed + 10, &[width, rank])]);
        }
        check("joint linear", run, reference, &inputs, &[true; 10]);
        check("joint linear", run, reference, &inputs, &[&[false; 2][..], &[true; 8]].concat());
    }
}

#[test]
fn linear_takes_any_strides_and_weight_types() {
    let x = normal(1, &[3, 5, 8]).transpose(0, 1).unwrap();
    let weight = normal(2, &[4, 8]).to_dtype(DType::BF16).unwrap();
    let frozen = FrozenLayer { weight: weight.clone().into(), bias: None };
    let y = linear(&x.clone().into(), Layer { frozen: &frozen, low_rank: None }).unwrap().into_tensor();
    let wanted = x
        .contiguous()
        .unwrap()
        .reshape((15, 8))
        .unwrap()
        .matmul(&weight.to_dtype(DType::F32).unwrap().t().unwrap())
        .unwrap();
    assert_close("strided", &y, &wanted.reshape((5, 3, 4)).unwrap());
}

#[test]
fn norms() {
    let layer_norm: Run = &|_, i| layer_norm_modulate(&i[0], &i[1], &i[2]);
    for (batch, tokens, width) in [(1, 1, 4), (2, 3, 37), (3, 50, 64)] {
        let x = (normal(1, &[batch, tokens, width]) * 3.0).unwrap();
        let inputs = [x.clone(), normal(2, &[batch, width]), normal(3, &[batch, width])];
        let reference: Reference = &|i| LayerNormModulate.reference(i);
        check("layer norm", layer_norm, reference, &inputs, &[true, false, false]);
        check("layer norm", layer_norm, reference, &inputs, &[true, true, true]);
        for heads in [1, 3] {
            let x = (normal(5, &[batch, tokens + 2, heads * width]) * 3.0).unwrap();
            let weights = |device: &Device| {
                let weight = |seed| normal(seed, &[width]).to_device(device).unwrap();
                vec![(tokens, weight(4)), (2, weight(6))]
            };
            let run: Run = &|device, i| rms_norm(&i[0], weights(device));
            check("rms norm", run, &|i| RmsNorm { weights: weights(&Device::Cpu) }.reference(i), &[x], &[true]);
        }
    }
}

#[test]
fn rotary_positions() {
    // Text tokens behind the grid stay; without any, all are turned.
    for (batch, grid, text, heads, axes) in
        [(1, (1, 1), 0, 1, [2, 0, 2]), (2, (3, 5), 4, 3, [2, 4, 4]), (3, (8, 7), 9, 2, [16, 56, 56])]
    {
        let table = |device: &Device| RotaryTable::of_grid(grid, axes, 10_000.0, device).unwrap();
        let width = heads * axes.iter().sum::<usize>();
        let x = normal(1, &[batch, grid.0 * grid.1 + text, width]);
        let run: Run = &|device, i| rotary(&i[0], &table(device));
        check("rotary", run, &|i| Rotary { table: table(&Device::Cpu) }.reference(i), &[x], &[true]);
    }
}

#[test]
fn pointwise_operations() {
    let gated: Run = &|_, i| gated_residual(&i[0], &i[1], &i[2]);
    for shape in [[1, 1, 3], [2, 5, 33], [2, 70, 130]] {
        let (x, y) = ((normal(1, &shape) * 3.0).unwrap(), normal(2, &shape));
        let inputs = [x.clone(), y, normal(3, &[shape[0], shape[2]])];
        check("gelu", &|_, i| gelu(&i[0]), &|i| i[0].gelu(), std::slice::from_ref(&x), &[true]);
        let halves = Tensor::cat(&[&x, &inputs[1]], 2).unwrap();
        let reference: &dyn Fn(&[Tensor]) -> Result<Tensor> = &|i| {
            let width = i[0].dim(2)? / 2;
            i[0].narrow(2, 0, width)?.silu()? * i[0].narrow(2, width, width)?
        };
        check("swiglu", &|_, i| swiglu(&i[0]), reference, &[halves], &[true]);
        for needs in [[true, true, false], [false, true, false], [true, true, true]] {
            check("gated residual", gated, &|i| GatedResidual.reference(i), &inputs, &needs);
        }
    }
}

#[test]
fn feed_forward_with_and_without_bias() {
    // Blocks of rows, on matrix units as well, and all rows in one piece.
    let sizes = [(1, 1, 3, 5), (2, 131, 8, 20), (2, 131, 40, 144), (3, 5, 512, 520), (2, 30, 512, 520)];
    for (batch, tokens, width, hidden) in sizes {
        for bias in [false, true] {
            let scale = |inner: usize| (inner as f64).powf(-0.5);
            let run: Run = &|device, i| {
                let on = |seed, shape: &[usize]| normal(seed, shape).to_device(device).unwrap();
                some_feed_forward(&i[0], (batch, width, hidden), bias, on, scale)
            };
            let reference: Reference = &|i| {
                let layer = |seed, outer: usize, inner: usize, x: &Tensor| {
                    let y = x.broadcast_matmul(&(normal(seed, &[outer, inner]) * scale(inner))?.t()?)?;
                    if bias { y.broadcast_add(&normal(seed + 1, &[outer])) } else { Ok(y) }
                };
                let [shift, scale, gate] = [1, 2, 3].map(|seed| normal(seed, &[batch, width]));
                let normed = LayerNormModulate.reference(&[i[0].clone(), shift, scale])?;
                let update = layer(6, width, hidden, &layer(4, hidden, width, &normed)?.gelu()?)?;
                GatedResidual.reference(&[i[0].clone(), update, gate])
            };
            check("feed-forward", run, reference, &[normal(8, &[batch, tokens, width])], &[true]);
        }
    }
}

#[test]
fn attention_forms() {
    let sizes = [
        (1, 1, 2, 1, 4, 1),
        (2, 9, 13, 3, 5, 1),
        (2, 9, 13, 3, 5, 20),
        (2, 150, 75, 2, 16, 256),
        // More than a task's queries, and than the keys and queries of the backward pass at a time.
        (1, 1100, 150, 2, 40, 3),
    ];
    for (batch, queries, keys, heads, d, count) in sizes {
        let (q, k) = (normal(1, &[batch, queries, heads * d]), normal(2, &[batch, keys, heads * d]));
        let v = normal(3, &[batch, keys, heads * d]);
        let sizes = Sizes::of(&q, &k, heads, count).unwrap();
        let run: Run = &|_, i| attention(&i[0], &i[1], &i[2], heads, count);
        let reference: Reference = &|i| Attention { sizes }.reference(i);
        check("attention", run, reference, &[q.clone(), k.clone(), v], &[true; 3]);
        let range = keys / 3..keys - keys / 5;
        let run: Run = &|_, i| attention_probability(&i[0], &i[1], heads, range.clone(), count);
        let reference: Reference = &|i| Probability { sizes, range: range.clone() }.reference(i);
        check("attention probability", run, reference, &[q, k], &[true; 2]);
    }
}

/// Where there is one key its value is all that a query gets, whatever the score: no gradient reaches q and k but for
/// the rounding of numbers near 1.
#[test]
fn one_key_takes_all() {
    let inputs: Vec<Tensor> = (1..4).map(|seed| normal(seed, &[2, 1, 8])).collect();
    let run = |i: &[Variable]| super::attention(&i[0], &i[1], &i[2], 2, 1);
    let (output, gradients) = differentiate(run, &inputs, &[true; 3], |output| normal(99, output.dims()));
    assert_close("one key", &output, &inputs[2]);
    let gradients: Vec<Tensor> = gradients.into_iter().flatten().collect();
    assert_close("gradient of its value", &gradients[2], &normal(99, output.dims()));
    for gradient in &gradients[..2] {
        let largest = values(gradient).into_iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(largest < 1e-6, "a gradient of {largest}");
    }
}

/// One key that counts for several is as good as several.
#[test]
fn attention_counts_equal_keys() {
    let (heads, count) = (2, 9);
    let (q, k, v) = (normal(1, &[2, 5, 8]), normal(2, &[2, 6, 8]), normal(3, &[2, 6, 8]));
    let repeated = |x: &Tensor| {
        let last = x.narrow(1, 5, 1).unwrap();
        Tensor::cat(&[vec![x], vec![&last; count - 1]].concat(), 1).unwrap()
    };
    let attention = |k: &Tensor, v: &Tensor, count| {
        let [q, k, v] = [&q, k, v].map(|tensor| tensor.clone().into());
        super::attention(&q, &k, &v, heads, count).unwrap().into_tensor()
    };
    assert_close("counted keys", &attention(&k, &v, count), &attention(&repeated(&k), &repeated(&v), 1));
    let probability = |k: &Tensor, count| {
        let [q, k] = [&q, k].map(|tensor| tensor.clone().into());
        super::attention_probability(&q, &k, heads, 1..5, count).unwrap().into_tensor()
    };
    assert_close("counted keys", &probability(&k, count), &probability(&repeated(&k), 1));
}

#[test]
fn score_head_layers() {
    for (maps, h, w) in [(1, 1, 1), (3, 4, 7), (40, 12, 12)] {
        let parameters: Vec<Tensor> =
            PARAMETERS.iter().zip(0..).map(|((_, shape), seed)| (normal(seed, shape) * 0.2).unwrap()).collect();
        let inputs = [vec![normal(9, &[maps, h, w])], parameters].concat();
        let run: Run = &|_, i| score_head(&i[0], &i[1..], Precision::F32);
        let flat = |i: &[Tensor]| {
            let flat = i[1..].iter().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
            Ok::<_, candle_core::Error>([i[0].clone(), Tensor::cat(&flat, 0)?])
        };
        let reference: Reference = &|i| ScoreHead(Precision::F32).reference(&flat(i)?);
        check("score head", run, reference, &inputs, &[true; 7]);
        let inputs = flat(&inputs).unwrap();
        let gradient = normal(10, &[maps, h, w]);
        let reference: Reference = &|i| ScoreHead(Precision::F32).reference(i);
        let wanted = reference_gradients(reference, &inputs, &[true, true], &gradient);
        let (d_maps, d_parameters) = products::backward(&inputs[0], &inputs[1], &gradient).unwrap();
        let wanted: Vec<Tensor> = wanted.into_iter().flatten().collect();
        assert_close("maps by products", &d_maps, &wanted[0]);
        assert_close("parameters by products", &d_parameters, &wanted[1]);
    }
}

/// A disc, the same on any grid size.
struct Disc(usize, usize);

impl Target for Disc {
    fn size(&self) -> (usize, usize) {
        (self.0, self.1)
    }

    fn row(&self, y: usize, out: &mut [f32]) {
        let dy = y as f32 / self.0 as f32 - 0.4;
        for (x, out) in out.iter_mut().enumerate() {
            let dx = x as f32 / self.1 as f32 - 0.6;
            *out = f32::from(dx * dx + dy * dy < 0.1);
        }
    }
}

#[test]
fn mask_losses() {
    for (pairs, h, w, height, width) in [(1, 1, 1, 3, 5), (3, 4, 6, 32, 48), (2, 7, 5, 40, 33)] {
        for raw_logit in [false, true] {
            let targets: Vec<Arc<dyn Target>> = (0..pairs).map(|_| Arc::new(Disc(height, width)) as _).collect();
            let run: Run = &|_, i| mask_loss(&i[0], targets.clone(), raw_logit);
            let of = MaskLoss { targets: targets.clone(), size: (height, width), raw_logit };
            let reference: Reference = &|i| of.reference(i);
            check("mask loss", run, reference, &[(normal(1, &[pairs, h, w]) * 2.0).unwrap()], &[true]);
        }
    }
}

#[test]
fn class_cross_entropy() {
    for (classes, h, w, height, width) in [(1, 2, 2, 8, 8), (3, 4, 6, 33, 70)] {
        let labels: Vec<u8> =
            (0..height * width).map(|i| if i % 5 == 0 { NO_CLASS } else { ((i / 7) % classes) as u8 }).collect();
        let weights: Vec<f32> = (0..classes).map(|c| 0.3 + c as f32).collect();
        let total = labels.iter().filter(|l| **l != NO_CLASS).map(|l| f64::from(weights[usize::from(*l)])).sum();
        let size = (height, width);
        let run: Run = &|_, i| pixel_cross_entropy(&i[0], labels.clone(), size, weights.clone());
        let of = PixelCrossEntropy { labels: labels.clone(), size, weights: weights.clone(), total };
        let reference: Reference = &|i| of.reference(i);
        check("pixel cross-entropy", run, reference, &[(normal(1, &[classes, h, w]) * 3.0).unwrap()], &[true]);
    }
}

/// The operations of a line each against candle's own differentiation.
#[test]
fn elementary_operations() {
    let x = normal(1, &[3, 4, 5]);
    let above = (x.sqr().unwrap() + 0.1).unwrap();
    let numbers = Tensor::new(&[2u32, 0, 2], &Device::Cpu).unwrap();
    let windows: Reference = &|i| {
        let part = |dim, start, length| i[0].narrow(dim, start, length)?.contiguous();
        ((part(2, 1, 2)? * 3.0)? + part(2, 3, 2)?)?.narrow(1, 0, 3)? + part(1, 1, 3)?.narrow(2, 2, 2)?
    };
    let cases: [(&str, Run, Reference, &Tensor); 13] = [
        ("reshape", &|_, i| i[0].reshape((12, 5)), &|i| i[0].reshape((12, 5)), &x),
        ("permute", &|_, i| i[0].permute(&[2, 0, 1]), &|i| i[0].permute((2, 0, 1))?.contiguous(), &x),
        ("window", &|_, i| i[0].window(1, 1..3), &|i| i[0].narrow(1, 1, 2)?.contiguous(), &x),
        (
            "several windows of one",
            &|_, i| {
                let last = add(&i[0].window(2, 1..3)?.scale(3.0)?, &i[0].window(2, 3..5)?)?;
                add(&last.window(1, 0..3)?, &i[0].window(1, 1..4)?.window(2, 2..4)?)
            },
            windows,
            &x,
        ),
        ("broadcast", &|_, i| i[0].broadcast_left(2), &|i| i[0].broadcast_left(2)?.contiguous(), &x),
        ("scale", &|_, i| i[0].scale(-1.5), &|i| &i[0] * -1.5, &x),
        ("log", &|_, i| i[0].log_above(0.5), &|i| (&i[0] + 0.5)?.log(), &above),
        ("mean", &|_, i| i[0].mean_keepdim(1), &|i| i[0].mean_keepdim(1), &x),
        ("max", &|_, i| i[0].max_keepdim(0), &|i| i[0].max_keepdim(0), &x),
        ("softmax", &|_, i| i[0].softmax(1), &|i| candle_nn::ops::softmax(&i[0], 1), &x),
        (
            "index_select",
            &|_, i| i[0].index_select(&numbers.to_device(i[0].device())?),
            &|i| i[0].index_select(&numbers, 0),
            &x,
        ),
        ("twice", &|_, i| add(&i[0], &add(&i[0], &i[0])?), &|i| &i[0] * 3.0, &x),
        ("cat", &|_, i| cat(&[i[0].clone(), i[0].scale(2.0)?], 1), &|i| Tensor::cat(&[&i[0], &(&i[0] * 2.0)?], 1), &x),
    ];
    for (what, run, reference, x) in cases {
        check(what, run, reference, std::slice::from_ref(x), &[true]);
    }
    let (a, b, c) = (normal(2, &[4, 5]), normal(3, &[5, 6]), normal(4, &[6, 5]));
    check("matmul", &|_, i| i[0].matmul(&i[1]), &|i| i[0].matmul(&i[1]), &[a.clone(), b], &[true, true]);
    let run: Run = &|_, i| i[0].matmul_transposed(&i[1]);
    check("matmul transposed", run, &|i| i[0].matmul(&i[1].t()?), &[a.clone(), c], &[true, true]);
    let run: Run = &|_, i| mean_squared_error(&i[0], i[1].tensor());
    check(
        "mean squared error",
        run,
        &|i| (&i[0] - &i[1])?.sqr()?.mean_all(),
        &[a.clone(), normal(5, &[4, 5])],
        &[true, false],
    );
    let run: Run = &|_, i| i[0].mul_constant(i[1].tensor());
    check("times constants", run, &|i| &i[0] * &i[1], &[a, normal(5, &[4, 5])], &[true, false]);
}

#[test]
fn an_input_without_gradient_gets_none() {
    let run = |i: &[Variable]| gated_residual(&i[0], &i[1], &i[2]);
    let inputs = [normal(1, &[2, 3, 4]), normal(3, &[2, 3, 4]), normal(2, &[2, 4])];
    let (_, gradients) = differentiate(run, &inputs, &[true, false, false], |output| output.ones_like().unwrap());
    assert!(gradients[0].is_some() && gradients[1].is_none() && gradients[2].is_none());
}
