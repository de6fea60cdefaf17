//! Reverse-mode differentiation of tensors: what is trained needs a gradient, and nothing else has one.
//!
//! A [`Variable`] is a tensor and, where a gradient may be wanted, the `Node` that it came from. Operations
//! ([`Op`]) save what their backward pass needs and no more; [`backward`] begins with gradients of some variables and visits
//! nodes from the last to the first. A gradient is moved to where it belongs, or added to the one that is there already; it
//! is never filled with zeros first, and a node's saved tensors go as soon as it has been visited.
mod gradients;

use gradients::Slot;
pub use gradients::{Destination, Gradients};

use candle_core::{Device, Result, Tensor, bail};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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

enum Origin {
    /// A variable that nothing made: its gradient stays here until it is taken.
    Leaf(Slot),
    Operation(Option<Backward>),
}

type Backward = Box<dyn FnOnce(Tensor, &mut Gradients) -> Result<()> + Send>;

/// A differentiable operation.
pub trait Op: Send + Sync + Sized + 'static {
    /// The name in errors.
    const NAME: &'static str;
    /// What the backward pass needs.
    type Saved: Send + 'static;

    /// The output, and what the backward pass needs to find the gradients of the inputs that `needs` marks. Nothing is
    /// saved where it marks none.
    fn forward(&self, inputs: &[&Tensor], needs: &[bool]) -> Result<(Tensor, Option<Self::Saved>)>;

    /// Adds the inputs' part of the loss's gradient, given that of the output, to `gradients`.
    fn backward(&self, saved: Self::Saved, gradient: Tensor, gradients: &mut Gradients) -> Result<()>;
}

/// Runs `op`, and records it where an input needs a gradient.
pub fn apply<O: Op>(op: O, inputs: &[&Variable]) -> Result<Variable> {
    let tensors: Vec<&Tensor> = inputs.iter().map(|input| &input.tensor).collect();
    let needs: Vec<bool> = inputs.iter().map(|input| input.needs_gradient()).collect();
    let (output, saved) = op.forward(&tensors, &needs)?;
    if !needs.contains(&true) {
        return Ok(Variable::constant(output));
    }
    let Some(saved) = saved else { bail!("{}: the forward pass saved nothing for the backward pass", O::NAME) };
    Ok(record(output, inputs, move |gradient, gradients| op.backward(saved, gradient, gradients)))
}

/// `output`, which is a function of `inputs`: `backward` adds their part of a gradient of the output.
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
        let Some(node) = &self.node else { return };
        if let Origin::Leaf(slot) = &mut *node.origin.lock().unwrap_or_else(PoisonError::into_inner) {
            *slot = Slot::of_memory(memory);
        }
    }

    /// The gradient that backward passes have left in a leaf since it was last taken; none where there was none.
    pub fn take_gradient(&self) -> Option<Tensor> {
        let node = self.node.as_ref()?;
        let mut origin = node.origin.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *origin {
            Origin::Leaf(slot) => std::mem::take(slot).into_sum(),
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
    let mut pending: BTreeMap<u64, Arc<Node>> = BTreeMap::new();
    let mut slots: HashMap<u64, Slot> = HashMap::new();
    for (root, gradient) in roots {
        if root.tensor.shape() != gradient.shape() {
            bail!("a gradient {:?} of a tensor {:?}", gradient.dims(), root.dims());
        }
        let Some(node) = root.node else { continue };
        slots.entry(node.number).or_default().add(gradient)?;
        pending.insert(node.number, node);
    }
    while let Some((number, node)) = pending.pop_last() {
        let Some(slot) = slots.remove(&number) else { continue };
        let Some(gradient) = slot.into_sum() else { continue };
        let mut origin = node.origin.lock().unwrap_or_else(PoisonError::into_inner);
        let function = match &mut *origin {
            Origin::Leaf(leaf) => {
                leaf.add(gradient)?;
                continue;
            }
            Origin::Operation(function) => function.take(),
        };
        drop(origin);
        let Some(function) = function else { bail!("an operation was carried back through twice") };
        let inputs = node.inputs.iter().map(|input| input.as_ref().map(|input| slot_of(&mut slots, input)));
        let mut gradients = Gradients::new(inputs.collect());
        function(gradient, &mut gradients)?;
        for (input, slot) in node.inputs.iter().zip(gradients.into_slots()) {
            let (Some(input), Some(slot)) = (input, slot) else { continue };
            put_slot(&mut slots, input, slot)?;
            pending.entry(input.number).or_insert_with(|| input.clone());
        }
    }
    Ok(())
}

/// The gradient of `input` as far as it is known.
fn slot_of(slots: &mut HashMap<u64, Slot>, input: &Node) -> Slot {
    match &mut *input.origin.lock().unwrap_or_else(PoisonError::into_inner) {
        Origin::Leaf(slot) => std::mem::take(slot),
        Origin::Operation(_) => slots.remove(&input.number).unwrap_or_default(),
    }
}

/// Puts back what [`slot_of`] took. An operation may have one input twice: then there is a part already.
fn put_slot(slots: &mut HashMap<u64, Slot>, input: &Node, slot: Slot) -> Result<()> {
    match &mut *input.origin.lock().unwrap_or_else(PoisonError::into_inner) {
        Origin::Leaf(place) => place.merge(slot),
        Origin::Operation(_) => slots.entry(input.number).or_default().merge(slot),
    }
}
