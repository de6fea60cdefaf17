//! Reverse-mode differentiation of tensors: what is trained needs a gradient, and nothing else has one.
//!
//! A [`Variable`] is a tensor and, where a gradient may be wanted, the `Node` that it came from. What is [`record`]ed of an
//! operation has what its backward pass needs and no more; [`backward`] begins with gradients of some variables and visits nodes
//! from the last to the first. A gradient is moved to where it belongs, or added to the one that is there already; it
//! is never filled with zeros first, and a node's saved tensors go as soon as it has been visited.
mod gradients;

use gradients::Slot;
pub use gradients::{Destination, Gradients};

use candle_core::{Device, Result, Tensor, bail};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A tensor that operations may be differentiated by.
#[derive(Clone)]
pub struct Variable {
    tensor: Tensor,
    node: Option<Arc<Node>>,
}

/// Where a variable came from.
struct Node {
    /// Nodes are visited by descending number: one that is made of others has a larger number than they.
    number: u64,
    origin: Mutex<Origin>,
    inputs: Vec<Option<Arc<Node>>>,
}

impl Node {
    fn origin(&self) -> MutexGuard<'_, Origin> {
        self.origin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Origin {
    /// A variable that nothing made: its gradient stays here until it is taken.
    Leaf(Slot),
    Operation(Option<Backward>),
}

type Backward = Box<dyn FnOnce(Tensor, &mut Gradients) -> Result<()> + Send>;

/// `output`, which is a function of `inputs`: `backward` adds their part of a gradient of the output. Where none of them needs
/// a gradient, nothing is recorded.
pub fn record(
    output: Tensor,
    inputs: &[&Variable],
    backward: impl FnOnce(Tensor, &mut Gradients) -> Result<()> + Send + 'static,
) -> Variable {
    if inputs.iter().all(|input| !input.needs_gradient()) {
        return Variable::constant(output);
    }
    let inputs = inputs.iter().map(|input| input.node.clone()).collect();
    Variable::with_node(output, Origin::Operation(Some(Box::new(backward))), inputs)
}

impl Variable {
    /// A tensor without gradient.
    pub fn constant(tensor: Tensor) -> Self {
        Self { tensor, node: None }
    }

    /// A variable that gradients are wanted of: see [`Self::take_gradient`].
    pub fn leaf(tensor: Tensor) -> Self {
        Self::with_node(tensor, Origin::Leaf(Slot::default()), vec![])
    }

    fn with_node(tensor: Tensor, origin: Origin, inputs: Vec<Option<Arc<Node>>>) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self { tensor, node: Some(Arc::new(Node { number, origin: Mutex::new(origin), inputs })) }
    }

    /// Its value, which no gradient flows through.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// [`Self::tensor`], the variable being done with.
    pub fn into_tensor(self) -> Tensor {
        self.tensor
    }

    /// Whether gradients flow through it.
    pub fn needs_gradient(&self) -> bool {
        self.node.is_some()
    }

    /// The same value without gradient.
    pub fn detach(&self) -> Self {
        Self::constant(self.tensor.clone())
    }

    /// The variable on `device`: itself, where it is there; else a copy without gradient.
    pub fn on(&self, device: &Device) -> Result<Self> {
        match self.tensor.device().same_device(device) {
            true => Ok(self.clone()),
            false => Ok(Self::constant(self.tensor.to_device(device)?)),
        }
    }

    /// Has the next gradient of a leaf written to `memory`, a contiguous tensor of its shape, over what is there.
    pub fn write_gradient_to(&self, memory: Tensor) {
        if let Some(Origin::Leaf(slot)) = self.node.as_ref().map(|node| node.origin()).as_deref_mut() {
            *slot = Slot { sum: None, memory: Some(memory) };
        }
    }

    /// The gradient that backward passes have left in a leaf since it was last taken; none where there was none.
    pub fn take_gradient(&self) -> Option<Tensor> {
        match &mut *self.node.as_ref()?.origin() {
            Origin::Leaf(slot) => std::mem::take(slot).sum,
            Origin::Operation(_) => None,
        }
    }

    /// `[…]`, as [`Tensor::dims`].
    pub fn dims(&self) -> &[usize] {
        self.tensor.dims()
    }

    /// As [`Tensor::dims3`].
    pub fn dims3(&self) -> Result<(usize, usize, usize)> {
        self.tensor.dims3()
    }

    /// As [`Tensor::device`].
    pub fn device(&self) -> &Device {
        self.tensor.device()
    }
}

impl From<Tensor> for Variable {
    fn from(tensor: Tensor) -> Self {
        Self::constant(tensor)
    }
}

/// Carries gradients of the loss by some variables, the roots, back to all leaves that they depend on. The gradients become
/// the backward pass's own: nobody else may hold them. Operations can be carried back through once.
pub fn backward(roots: impl IntoIterator<Item = (Variable, Tensor)>) -> Result<()> {
    let mut pending = Pending::new();
    for (root, gradient) in roots {
        if root.tensor.shape() != gradient.shape() {
            bail!("a gradient {:?} of a tensor {:?}", gradient.dims(), root.dims());
        }
        let Some(node) = root.node else { continue };
        pending.entry(node.number).or_insert_with(|| (node, Slot::default())).1.add(gradient)?;
    }
    while let Some((_, (node, slot))) = pending.pop_last() {
        let Some(gradient) = slot.sum else { continue };
        let function = match &mut *node.origin() {
            Origin::Leaf(leaf) => {
                leaf.add(gradient)?;
                continue;
            }
            Origin::Operation(function) => function.take(),
        };
        let Some(function) = function else { bail!("an operation was carried back through twice") };
        let mut take = |input| with_slot(&mut pending, input, std::mem::take);
        let mut gradients = Gradients(node.inputs.iter().map(|input| input.as_ref().map(&mut take)).collect());
        function(gradient, &mut gradients)?;
        for (input, slot) in node.inputs.iter().flatten().zip(gradients.0.into_iter().flatten()) {
            // An operation may have one input twice: then there is a part already.
            with_slot(&mut pending, input, |place| place.merge(slot))?;
        }
    }
    Ok(())
}

/// Operations that are still to be carried back through, by their numbers, with the gradients of their outputs as far as these
/// are known.
type Pending = BTreeMap<u64, (Arc<Node>, Slot)>;

/// Calls `work` with the gradient of `input` as far as it is known: a leaf has it, and for an operation `pending`.
fn with_slot<R>(pending: &mut Pending, input: &Arc<Node>, work: impl FnOnce(&mut Slot) -> R) -> R {
    match &mut *input.origin() {
        Origin::Leaf(slot) => work(slot),
        Origin::Operation(_) => {
            work(&mut pending.entry(input.number).or_insert_with(|| (input.clone(), Slot::default())).1)
        }
    }
}
