//! Loss terms and gradients of one micro-batch, with blocks recomputed where memory asks for it.
use super::parameters::Parameters;
use crate::config::LossConfig;
use crate::loss::{AlignmentLoss, MaskAlignment, Matching, SampleTargets, flow_loss};
use crate::model::families::{Probe, Streams, Transformer as MmDit};
use crate::model::text::TextEmbedding;
use crate::ops;
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

/// A micro-batch as the network sees it.
pub struct StepInputs {
    /// `[batch, channels, h, w]`
    pub latents: Tensor,
    /// As `latents`.
    pub noise: Tensor,
    /// `[batch]`, 0 is the image and 1 the noise.
    pub sigma: Tensor,
    /// `[batch]`, what the model is told, 1000σ; on the host.
    pub timestep: Tensor,
    pub text: TextEmbedding,
    /// One for each image.
    pub targets: Vec<SampleTargets>,
}

/// Unweighted loss terms, and their weighted sum; absent terms were not computed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossTerms {
    pub total: f32,
    pub flow: Option<f32>,
    pub focal: Option<f32>,
    pub dice: Option<f32>,
    pub align: Option<f32>,
}

/// How the step runs: the same numbers in every case.
#[derive(Clone, Copy, Debug)]
pub struct StepPlan<'a> {
    /// Ascending indices of the blocks whose attention, averaged, the masks are compared with.
    pub expert_layers: &'a [usize],
    /// The first blocks, so many, keep only their input and run again in the backward pass.
    pub recomputed_blocks: usize,
}

/// What a GPU may still be working on.
pub struct Gradients {
    /// Of the weighted loss, one for each of the parameters; none where the loss does not depend on it.
    pub of: Vec<Option<Tensor>>,
    terms: Unread,
    config: LossConfig,
}

impl Gradients {
    /// The loss terms. The host waits for them, and so for the whole step.
    pub fn terms(&self) -> Result<LossTerms> {
        self.terms.read(&self.config)
    }
}

/// Loss terms while they are still on their device.
#[derive(Default)]
struct Unread {
    flow: Option<Tensor>,
    focal: Option<Tensor>,
    dice: Option<Tensor>,
    align: Option<Tensor>,
}

impl Unread {
    fn read(&self, config: &LossConfig) -> Result<LossTerms> {
        let value = |term: &Option<Tensor>| term.as_ref().map(|term| term.to_scalar::<f32>()).transpose();
        let (flow, focal) = (value(&self.flow)?, value(&self.focal)?);
        let (dice, align) = (value(&self.dice)?, value(&self.align)?);
        let weighted = [
            (flow, config.flow_weight),
            (focal, config.focal_weight),
            (dice, config.dice_weight),
            (align, config.align_weight),
        ];
        let total = weighted.iter().map(|(term, weight)| term.unwrap_or(0.0) * *weight as f32).sum();
        Ok(LossTerms { total, flow, focal, dice, align })
    }
}

struct Step<'a> {
    model: &'a MmDit,
    parameters: &'a Parameters,
    score_head: Option<Vec<Tensor>>,
    config: &'a LossConfig,
    inputs: &'a StepInputs,
    conditioning: Tensor,
    grid: (usize, usize),
    expert_layers: &'a [usize],
    /// What the mask loss reads of the experts, cut off from their blocks; those that were passed so far.
    probes: Vec<Probe>,
    /// Begun when the last expert's attention was first there.
    matchings: Vec<Matching>,
    /// Gradients of the experts' queries and keys, as [`Self::align`] found them.
    pulled: Vec<[Option<Tensor>; 2]>,
    terms: Unread,
    gradients: Vec<Option<Tensor>>,
}

/// One forward and backward pass.
pub fn gradients(
    model: &MmDit,
    parameters: &Parameters,
    config: &LossConfig,
    inputs: &StepInputs,
    plan: StepPlan<'_>,
) -> Result<Gradients> {
    let sigma = inputs.sigma.reshape(((), 1, 1, 1))?;
    let noised = (inputs.latents.broadcast_mul(&(1.0 - &sigma)?)? + inputs.noise.broadcast_mul(&sigma)?)?;
    let text = match parameters.prompt() {
        Some(tokens) => inputs.text.with_tokens(tokens)?,
        None => inputs.text.clone(),
    };
    let embedded = model.embedding.embed(&noised, &inputs.timestep, &text)?;
    let mut step = Step {
        model,
        parameters,
        score_head: parameters.score_head(),
        config,
        inputs,
        conditioning: embedded.conditioning,
        grid: embedded.grid,
        expert_layers: plan.expert_layers,
        probes: vec![],
        matchings: vec![],
        pulled: vec![],
        terms: Unread::default(),
        gradients: vec![None; parameters.all.len()],
    };
    step.run(embedded.streams, plan.recomputed_blocks)?;
    Ok(Gradients { of: step.gradients, terms: step.terms, config: config.clone() })
}

impl Step<'_> {
    fn run(&mut self, streams: Streams, recomputed: usize) -> Result<()> {
        let with_flow = self.config.flow_weight > 0.0;
        // The mask loss reaches no further than the last expert.
        let blocks = if with_flow { self.model.blocks.len() } else { self.last_expert() + 1 };
        let recomputed = recomputed.min(blocks);
        let mut kept = Vec::with_capacity(recomputed);
        let mut streams = streams;
        for (layer, block) in self.model.blocks[..recomputed].iter().enumerate() {
            kept.push(streams.clone());
            let (out, probe) = block.forward(&streams, &self.conditioning)?;
            self.look(layer, &probe)?;
            streams = Streams { image: out.image.detach(), text: out.text.detach(), ..out };
        }

        let start =
            if recomputed > self.parameters.first_block() { Leaf::new(&streams)? } else { Leaf::constant(streams) };
        let mut streams = start.streams.clone();
        let mut experts = vec![];
        for (layer, block) in self.model.blocks.iter().enumerate().take(blocks).skip(recomputed) {
            let probe = if layer + 1 == blocks && !with_flow {
                block.probe(&streams, &self.conditioning)?
            } else {
                let (out, probe) = block.forward(&streams, &self.conditioning)?;
                streams = out;
                probe
            };
            self.look(layer, &probe)?;
            if self.expert_layers.contains(&layer) {
                experts.push((layer, probe));
            }
        }
        let finish = || self.model.embedding.finish(&streams.image, &self.conditioning, self.grid);
        let velocity = with_flow.then(finish).transpose()?;
        self.align()?;
        let mut loss = Sum::default();
        for (layer, probe) in &experts {
            self.pull(*layer, probe, &mut loss)?;
        }
        if let Some(velocity) = velocity {
            let flow = flow_loss(&velocity, &self.inputs.latents, &self.inputs.noise)?;
            self.terms.flow = Some(flow.detach());
            loss.add((flow * self.config.flow_weight)?)?;
        }
        drop((streams, experts));
        let above = self.backward(loss, &start)?;
        self.recompute(kept, blocks, above)
    }

    /// Runs the blocks of which only the inputs were `kept` again, from the last down, and pulls the loss through each;
    /// `above` are the gradients of the last one's output. In all `blocks` are run.
    fn recompute(&mut self, mut kept: Vec<Streams>, blocks: usize, mut above: StreamGradients) -> Result<()> {
        let with_flow = self.config.flow_weight > 0.0;
        let first = self.parameters.first_block();
        for layer in (first..kept.len()).rev() {
            let Some(input) = kept.pop() else { break };
            let leaf = if layer > first { Leaf::new(&input)? } else { Leaf::constant(input) };
            let mut loss = Sum::default();
            let block = &self.model.blocks[layer];
            if layer + 1 == blocks && !with_flow {
                let probe = block.probe(&leaf.streams, &self.conditioning)?;
                self.pull(layer, &probe, &mut loss)?;
            } else {
                let (out, probe) = block.forward(&leaf.streams, &self.conditioning)?;
                self.pull(layer, &probe, &mut loss)?;
                loss.pull(&out.image, &above.0)?;
                loss.pull(&out.text, &above.1)?;
            }
            above = self.backward(loss, &leaf)?;
        }
        Ok(())
    }

    fn alignment(&self) -> MaskAlignment<'_> {
        MaskAlignment {
            heads: self.model.config.num_attention_heads,
            grid: self.grid,
            targets: &self.inputs.targets,
            score_head: self.score_head.as_deref(),
            config: self.config,
        }
    }

    fn last_expert(&self) -> usize {
        self.expert_layers.last().copied().unwrap_or(0)
    }

    /// Where block `layer` is an expert, keeps what the mask loss reads of it: a leaf, so that the loss's gradients can
    /// wait until the block's own turn comes. With the last expert the matching begins, to be finished by
    /// [`Self::align`].
    fn look(&mut self, layer: usize, probe: &Probe) -> Result<()> {
        if !self.expert_layers.contains(&layer) || self.inputs.targets.iter().all(|of| of.masks.is_empty()) {
            return Ok(());
        }
        let leaf = |t: &Tensor| Result::Ok(Var::from_tensor(t)?.into_inner());
        let (queries, keys) = (leaf(&probe.queries)?, leaf(&probe.keys)?);
        self.probes.push(Probe { queries, keys, ..*probe });
        if layer == self.last_expert() {
            self.matchings = self.alignment().begin(&self.probes)?;
        }
        Ok(())
    }

    /// The alignment loss of the experts' attention, and its gradients: those of the score head, and those of the experts'
    /// queries and keys, for [`Self::pull`].
    fn align(&mut self) -> Result<()> {
        let (probes, matchings) = (std::mem::take(&mut self.probes), std::mem::take(&mut self.matchings));
        if probes.is_empty() {
            return Ok(());
        }
        let found = self.alignment().loss(&probes, matchings)?;
        let terms = &mut self.terms;
        let loss = match found {
            AlignmentLoss::None => return Ok(()),
            AlignmentLoss::Sigmoid { focal, dice } => {
                (terms.focal, terms.dice) = (Some(focal.detach()), Some(dice.detach()));
                ((focal * self.config.focal_weight)? + (dice * self.config.dice_weight)?)?
            }
            AlignmentLoss::Softmax { align } => {
                terms.align = Some(align.detach());
                (align * self.config.align_weight)?
            }
        };
        let grads = loss.backward()?;
        self.add(&grads)?;
        let of = |probe: &Probe| [grads.get(&probe.queries).cloned(), grads.get(&probe.keys).cloned()];
        self.pulled = probes.iter().map(of).collect();
        Ok(())
    }

    /// Adds what the alignment loss asks of block `layer`, where that is an expert.
    fn pull(&self, layer: usize, probe: &Probe, loss: &mut Sum) -> Result<()> {
        let place = self.expert_layers.iter().position(|expert| *expert == layer);
        let Some([queries, keys]) = place.and_then(|place| self.pulled.get(place)) else { return Ok(()) };
        // Keys first, as the product that logits come from has them: sums of gradients depend on it in their last bit.
        loss.pull(&probe.keys, keys)?;
        loss.pull(&probe.queries, queries)
    }

    /// Pulls the loss back: adds to the parameters' gradients, returns those of the leaf's streams.
    fn backward(&mut self, loss: Sum, leaf: &Leaf) -> Result<StreamGradients> {
        let Some(loss) = loss.0.filter(Tensor::track_op) else { return Ok((None, None)) };
        let grads = loss.backward()?;
        self.add(&grads)?;
        Ok(leaf.gradients(&grads))
    }

    /// Adds to the parameters' gradients.
    fn add(&mut self, grads: &GradStore) -> Result<()> {
        for (parameter, sum) in self.parameters.all.iter().zip(&mut self.gradients) {
            if let Some(grad) = grads.get(parameter.var.as_tensor()) {
                *sum = Some(match sum.take() {
                    None => grad.clone(),
                    Some(sum) => (sum + grad)?,
                });
            }
        }
        Ok(())
    }
}

/// Gradients of an image and a text stream, where the loss depends on them.
type StreamGradients = (Option<Tensor>, Option<Tensor>);

/// Where a piece of the graph begins.
struct Leaf {
    streams: Streams,
}

impl Leaf {
    /// Begins a graph that gradients flow out of.
    fn new(streams: &Streams) -> Result<Self> {
        let leaf = |t: &Tensor| Result::Ok(Var::from_tensor(t)?.into_inner());
        let Streams { image, text, last_text_count } = streams;
        Ok(Self { streams: Streams { image: leaf(image)?, text: leaf(text)?, last_text_count: *last_text_count } })
    }

    /// Begins where nothing below is trained.
    fn constant(streams: Streams) -> Self {
        Self { streams }
    }

    fn gradients(&self, grads: &GradStore) -> StreamGradients {
        (grads.get(&self.streams.image).cloned(), grads.get(&self.streams.text).cloned())
    }
}

/// A sum of losses that may be empty.
#[derive(Default)]
struct Sum(Option<Tensor>);

impl Sum {
    fn add(&mut self, term: Tensor) -> Result<()> {
        self.0 = Some(match self.0.take() {
            None => term,
            Some(sum) => (sum + term)?,
        });
        Ok(())
    }

    /// Adds a term whose gradient by `tensor` is `gradient`: what was found elsewhere of a loss on it goes on from here.
    fn pull(&mut self, tensor: &Tensor, gradient: &Option<Tensor>) -> Result<()> {
        match gradient {
            Some(gradient) => self.add(ops::seed(tensor, gradient)?),
            None => Ok(()),
        }
    }
}
