//! Every operation's own loops against its composed form: values and gradients, odd shapes and strides, and the same
//! bits on one thread as on several.
use super::function::{Function, apply, composed_backward};
use super::score_head::ScoreHead;
use super::*;
use candle_core::{Device, Tensor, Var};
use rand::SeedableRng;
use rand_distr::Distribution;
use std::sync::Arc;

pub(super) fn normal(seed: u64, shape: &[usize]) -> Tensor {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let n = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|_| rand_distr::StandardNormal.sample(&mut rng)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

pub(super) fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(what: &str, got: &Tensor, wanted: &Tensor) {
    assert_eq!(got.dims(), wanted.dims(), "{what}");
    let (got, wanted) = (values(got), values(wanted));
    let largest = wanted.iter().fold(0f32, |m, v| m.max(v.abs())).max(1e-6);
    let worst = got.iter().zip(&wanted).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst <= 1e-5 * largest, "{what}: off by {worst}, largest value {largest}");
}

/// Values and gradients of the function that `make` puts on a device, against its composed form on the CPU, for the
/// inputs that `needs` names.
fn check<F: Function>(make: impl Fn(&Device) -> F + Sync, inputs: &[Tensor], needs: &[bool]) {
    let make_for = make;
    let make = || make_for(&Device::Cpu);
    #[cfg(feature = "cuda")]
    super::cuda::tests::check_f32(&make_for, inputs, needs);
    let composed = make().composed(inputs).unwrap();
    let leaves: Vec<Tensor> = inputs
        .iter()
        .zip(needs)
        .map(|(t, need)| if *need { Var::from_tensor(t).unwrap().into_inner() } else { t.clone() })
        .collect();
    let run = || {
        let output = apply(make(), &leaves.iter().collect::<Vec<_>>()).unwrap();
        let grad = normal(99, output.dims());
        let grads = (&output * &grad).unwrap().sum_all().unwrap().backward().unwrap();
        let grads: Vec<Option<Tensor>> = leaves.iter().map(|leaf| grads.get(leaf).cloned()).collect();
        (output.detach(), grad, grads)
    };
    let (output, grad, grads) = run();
    assert_close(F::NAME, &output, &composed);
    let wanted = composed_backward(|i| make().composed(i), inputs, &grad, needs).unwrap();
    for (i, (got, wanted)) in grads.iter().zip(&wanted).enumerate() {
        match (got, wanted) {
            (Some(got), Some(wanted)) => assert_close(&format!("{} gradient {i}", F::NAME), got, wanted),
            (got, wanted) => assert_eq!(got.is_some(), wanted.is_some(), "{} gradient {i}", F::NAME),
        }
    }
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let three = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let (a, b) = (one.install(run), three.install(run));
    assert_eq!(values(&a.0), values(&b.0), "{}: threads change the result", F::NAME);
    for (a, b) in a.2.iter().zip(&b.2) {
        assert_eq!(a.as_ref().map(values), b.as_ref().map(values), "{}: threads change a gradient", F::NAME);
    }
}

#[test]
fn linear_with_and_without_adapter() {
    // The adapter is merged into the weight in the third, and not in the last.
    for (rows, inner, outer, rank) in [(1, 1, 1, 1), (7, 13, 5, 3), (129, 64, 200, 16), (45, 130, 300, 33)] {
        let make = |device: &Device| super::linear::Linear {
            weight: normal(1, &[outer, inner]).to_device(device).unwrap(),
            bias: Some(normal(2, &[outer]).to_device(device).unwrap()),
            scale: 0.7,
        };
        let inputs = [normal(3, &[rows, inner]), normal(4, &[rank, inner]), normal(5, &[outer, rank])];
        check(make, &inputs, &[true, true, true]);
        check(make, &inputs, &[false, true, true]);
        check(make, &inputs[..1], &[true]);
    }
}

#[test]
fn linear_takes_any_strides_and_weight_types() {
    let x = normal(1, &[3, 5, 8]).transpose(0, 1).unwrap();
    let weight = normal(2, &[4, 8]).to_dtype(candle_core::DType::BF16).unwrap();
    let y = linear(&x, &weight, None, None).unwrap();
    let wanted = x
        .contiguous()
        .unwrap()
        .reshape((15, 8))
        .unwrap()
        .matmul(&weight.to_dtype(candle_core::DType::F32).unwrap().t().unwrap())
        .unwrap();
    assert_close("strided", &y, &wanted.reshape((5, 3, 4)).unwrap());
}

#[test]
fn norms() {
    for (batch, tokens, width) in [(1, 1, 4), (2, 3, 37), (3, 50, 64)] {
        let x = (normal(1, &[batch, tokens, width]) * 3.0).unwrap();
        let inputs = [x.clone(), normal(2, &[batch, width]), normal(3, &[batch, width])];
        check(|_| super::norm::LayerNormModulate, &inputs, &[true, false, false]);
        check(|_| super::norm::LayerNormModulate, &inputs, &[true, true, true]);
        check(|device| super::norm::RmsNorm { weight: normal(4, &[width]).to_device(device).unwrap() }, &[x], &[true]);
    }
}

#[test]
fn pointwise() {
    for shape in [[1, 1, 3], [2, 5, 33], [2, 70, 130]] {
        let (x, y) = ((normal(1, &shape) * 3.0).unwrap(), normal(2, &shape));
        let gate = normal(3, &[shape[0], shape[2]]);
        check(|_| super::pointwise::Gelu, std::slice::from_ref(&x), &[true]);
        let gated = |_: &Device| super::pointwise::GatedResidual;
        check(gated, &[x.clone(), y.clone(), gate.clone()], &[true, true, false]);
        check(gated, &[x.clone(), y.clone(), gate.clone()], &[false, true, false]);
        check(gated, &[x, y, gate], &[true, true, true]);
    }
}

/// A feed-forward of these sizes, `values(seed, shape)` times `scale(inputs)` being the weights of a layer.
pub(in crate::ops) fn some_feed_forward(
    (batch, width, hidden): (usize, usize, usize),
    bias: bool,
    values: impl Fn(u64, &[usize]) -> Tensor,
    scale: impl Fn(usize) -> f64,
) -> super::feed_forward::FeedForward {
    let layer = |seed, outer: usize, inner: usize| FrozenLayer {
        weight: (values(seed, &[outer, inner]) * scale(inner)).unwrap(),
        bias: bias.then(|| values(seed + 1, &[outer])),
    };
    super::feed_forward::FeedForward {
        shift: values(1, &[batch, width]),
        scale: values(2, &[batch, width]),
        gate: values(3, &[batch, width]),
        up: layer(4, hidden, width),
        down: layer(6, width, hidden),
        kept: Some(std::sync::Mutex::default()),
    }
}

#[test]
fn feed_forward_with_and_without_bias() {
    // Blocks of rows, on matrix units as well, and all rows in one piece.
    let sizes = [(1, 1, 3, 5), (2, 131, 8, 20), (2, 131, 40, 144), (3, 5, 512, 520), (2, 30, 512, 520)];
    for (batch, tokens, width, hidden) in sizes {
        for bias in [false, true] {
            let make = |device: &Device| {
                let on = |seed, shape: &[usize]| normal(seed, shape).to_device(device).unwrap();
                some_feed_forward((batch, width, hidden), bias, on, |inner| (inner as f64).powf(-0.5))
            };
            check(make, &[normal(8, &[batch, tokens, width])], &[true]);
        }
    }
}

#[test]
fn attention_forms() {
    let sizes = [
        (1, 1, 2, 1, 4, 1),
        (2, 9, 13, 3, 5, 1),
        (2, 9, 13, 3, 5, 20),
        (2, 150, 77, 2, 16, 256),
        // More than a task's queries, and than the keys and queries of the backward pass at a time.
        (1, 1100, 150, 2, 40, 3),
    ];
    for (batch, queries, keys, heads, d, last_key_count) in sizes {
        let (q, k) = (normal(1, &[batch, queries, heads * d]), normal(2, &[batch, keys, heads * d]));
        let v = normal(3, &[batch, keys, heads * d]);
        check(|_| super::attention::Attention::new(heads, last_key_count), &[q.clone(), k.clone(), v], &[true; 3]);
        let range = keys / 3..keys - keys / 5;
        check(|_| super::attention::Probability { heads, range: range.clone(), last_key_count }, &[q, k], &[true; 2]);
    }
}

/// Where there is one key its value is all that a query gets, whatever the score: no gradient reaches q and k but for
/// the rounding of numbers near 1.
#[test]
fn one_key_takes_all() {
    let inputs: Vec<Tensor> = (1..4).map(|seed| normal(seed, &[2, 1, 8])).collect();
    let leaves: Vec<Tensor> = inputs.iter().map(|t| Var::from_tensor(t).unwrap().into_inner()).collect();
    let output = super::attention(&leaves[0], &leaves[1], &leaves[2], 2, 1).unwrap();
    assert_close("one key", &output, &inputs[2]);
    let grad = normal(99, output.dims());
    let grads = (&output * &grad).unwrap().sum_all().unwrap().backward().unwrap();
    assert_close("gradient of its value", grads.get(&leaves[2]).unwrap(), &grad);
    for leaf in &leaves[..2] {
        let largest = values(grads.get(leaf).unwrap()).into_iter().fold(0f32, |m, v| m.max(v.abs()));
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
    let counted = super::attention(&q, &k, &v, heads, count).unwrap();
    assert_close("counted keys", &counted, &super::attention(&q, &repeated(&k), &repeated(&v), heads, 1).unwrap());
    let counted = super::attention_probability(&q, &k, heads, 1..5, count).unwrap();
    assert_close("counted keys", &counted, &super::attention_probability(&q, &repeated(&k), heads, 1..5, 1).unwrap());
}

#[test]
fn score_head_layers() {
    for (maps, h, w) in [(1, 1, 1), (3, 4, 7), (40, 12, 12)] {
        let parameters: Vec<Tensor> = PARAMETERS
            .iter()
            .enumerate()
            .map(|(i, (_, shape))| (normal(i as u64, shape) * 0.2).unwrap().flatten_all().unwrap())
            .collect();
        let flat = Tensor::cat(&parameters, 0).unwrap();
        let inputs = [normal(9, &[maps, h, w]), flat];
        check(|_| ScoreHead(Precision::F32), &inputs, &[true, true]);
        let grad = normal(10, &[maps, h, w]);
        let wanted = composed_backward(|i| ScoreHead(Precision::F32).composed(i), &inputs, &grad, &[true, true]);
        let (d_maps, d_parameters) = super::score_head_products::backward(&inputs[0], &inputs[1], &grad).unwrap();
        let wanted: Vec<Tensor> = wanted.unwrap().into_iter().flatten().collect();
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
            let make =
                |_: &Device| super::mask_loss::MaskLoss { targets: targets.clone(), size: (height, width), raw_logit };
            check(make, &[(normal(1, &[pairs, h, w]) * 2.0).unwrap()], &[true]);
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
        let make = |_: &Device| super::pixel_cross_entropy::PixelCrossEntropy {
            labels: labels.clone(),
            size: (height, width),
            weights: weights.clone(),
            total,
        };
        check(make, &[(normal(1, &[classes, h, w]) * 3.0).unwrap()], &[true]);
    }
}

#[test]
fn an_input_without_gradient_gets_none() {
    let x = Var::from_tensor(&normal(1, &[2, 3, 4])).unwrap();
    let gate = normal(2, &[2, 4]);
    let y = gated_residual(x.as_tensor(), &normal(3, &[2, 3, 4]), &gate).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert!(grads.get(x.as_tensor()).is_some() && grads.get(&gate).is_none());
}
