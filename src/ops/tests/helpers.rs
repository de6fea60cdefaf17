//! What tests of operations are made of: inputs, and an operation's output and gradients.
use super::super::*;
use crate::autograd::{Variable, backward};
use candle_core::{Device, Result, Tensor};
use rand::SeedableRng;
use rand_distr::Distribution;

pub fn normal(seed: u64, shape: &[usize]) -> Tensor {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let n = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|_| rand_distr::StandardNormal.sample(&mut rng)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

pub fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// An operation on inputs that lie on the device that it is given.
pub type Run<'a> = &'a (dyn Fn(&Device, &[Variable]) -> Result<Variable> + Sync);
/// Its reference on the CPU.
pub type Reference<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// The output and the gradients of the inputs that `needs` names, the output's being `gradient`.
pub fn differentiate(
    run: impl Fn(&[Variable]) -> Result<Variable>,
    inputs: &[Tensor],
    needs: &[bool],
    gradient: impl Fn(&Tensor) -> Tensor,
) -> (Tensor, Vec<Option<Tensor>>) {
    let variables: Vec<Variable> = inputs
        .iter()
        .zip(needs)
        .map(|(input, need)| if *need { Variable::leaf(input.clone()) } else { input.clone().into() })
        .collect();
    let output = run(&variables).unwrap();
    let gradient = gradient(output.tensor());
    backward([(output.clone(), gradient)]).unwrap();
    (output.into_tensor(), variables.iter().map(Variable::take_gradient).collect())
}

/// A layer of normal weights on a device.
pub fn layer(device: &Device, seed: u64, outer: usize, inner: usize) -> FrozenLayer {
    FrozenLayer {
        weight: normal(seed, &[outer, inner]).to_device(device).unwrap().into(),
        bias: Some(normal(seed + 1, &[outer]).to_device(device).unwrap()),
    }
}

/// [`linear`] with the adapter that follows x among the inputs, if there is one.
pub fn adapted(inputs: &[Variable], frozen: &FrozenLayer, scale: f64) -> Result<Variable> {
    let low_rank = match inputs {
        [_, down, up] => Some(LowRank { down: down.clone(), up: up.clone(), scale }),
        _ => None,
    };
    linear(&inputs[0], Layer { frozen, low_rank: low_rank.as_ref() })
}

/// A feed-forward of these sizes on a device, `values(seed, shape)` times `scale(inputs)` being the weights of a layer.
pub fn some_feed_forward(
    x: &Variable,
    (batch, width, hidden): (usize, usize, usize),
    bias: bool,
    values: impl Fn(u64, &[usize]) -> Tensor,
    scale: impl Fn(usize) -> f64,
) -> Result<Variable> {
    let layer = |seed, outer: usize, inner: usize| FrozenLayer {
        weight: (values(seed, &[outer, inner]) * scale(inner)).unwrap().into(),
        bias: bias.then(|| values(seed + 1, &[outer])),
    };
    let [shift, scale_of, gate] = [1, 2, 3].map(|seed| values(seed, &[batch, width]));
    let modulation = Modulation { shift: &shift, scale: &scale_of, gate: &gate };
    feed_forward(x, modulation, layer(4, hidden, width), layer(6, width, hidden))
}
