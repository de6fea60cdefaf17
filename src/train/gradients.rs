//! Loss terms and gradients of one micro-batch, with blocks recomputed where memory asks for it.
use super::parameters::Parameters;
use crate::config::LossConfig;
use crate::loss::{AlignmentLoss, MaskAlignment, Matching, SampleTargets, flow_loss};
use crate::model::mmdit::{MmDit, Probe, Streams};
use crate::model::text::TextEmbedding;
use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, Var};

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
pub struct StepPlan {
    pub expert_layer: usize,
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
    expert_layer: usize,
    /// Begun when the expert's attention was first there.
    matchings: Vec<Matching>,
    terms: Unread,
    gradients: Vec<Option<Tensor>>,
}

/// One forward and backward pass.
pub fn gradients(
    model: &MmDit,
    parameters: &Parameters,
    config: &LossConfig,
    inputs: &StepInputs,
    plan: StepPlan,
) -> Result<Gradients> {
    let sigma = inputs.sigma.reshape(((), 1, 1, 1))?;
    let noised = (inputs.latents.broadcast_mul(&(1.0 - &sigma)?)? + inputs.noise.broadcast_mul(&sigma)?)?;
    let embedded = model.embedding.embed(&noised, &inputs.timestep, &inputs.text)?;
    let mut step = Step {
        model,
        parameters,
        score_head: parameters.score_head(),
        config,
        inputs,
        conditioning: embedded.conditioning,
        grid: embedded.grid,
        expert_layer: plan.expert_layer,
        matchings: vec![],
        terms: Unread::default(),
        gradients: vec![None; parameters.all.len()],
    };
    step.run(embedded.streams, plan.recomputed_blocks)?;
    Ok(Gradients { of: step.gradients, terms: step.terms, config: config.clone() })
}

impl Step<'_> {
    fn run(&mut self, streams: Streams, recomputed: usize) -> Result<()> {
        let with_flow = self.config.flow_weight > 0.0;
        // The mask loss reaches no further than the expert.
        let blocks = if with_flow { self.model.blocks.len() } else { self.expert_layer + 1 };
        let recomputed = recomputed.min(blocks);
        let mut kept = Vec::with_capacity(recomputed);
        let mut streams = streams;
        for (layer, block) in self.model.blocks[..recomputed].iter().enumerate() {
            kept.push(streams.clone());
            let (out, probe) = block.forward(&streams, &self.conditioning)?;
            if layer == self.expert_layer {
                self.begin_matching(&probe)?;
            }
            streams = Streams { image: out.image.detach(), text: out.text.detach(), ..out };
        }

        let start =
            if recomputed > self.parameters.first_block() { Leaf::new(&streams)? } else { Leaf::constant(streams) };
        let mut streams = start.streams.clone();
        let mut expert = None;
        for (layer, block) in self.model.blocks.iter().enumerate().take(blocks).skip(recomputed) {
            let probe = if layer == self.expert_layer && !with_flow {
                block.probe(&streams, &self.conditioning)?
            } else {
                let (out, probe) = block.forward(&streams, &self.conditioning)?;
                streams = out;
                probe
            };
            if layer == self.expert_layer {
                self.begin_matching(&probe)?;
                expert = Some(probe);
            }
        }
        let mut loss = Sum::default();
        let finish = || self.model.embedding.finish(&streams.image, &self.conditioning, self.grid);
        let velocity = with_flow.then(finish).transpose()?;
        if let Some(probe) = expert {
            self.align(&probe, &mut loss)?;
        }
        if let Some(velocity) = velocity {
            let flow = flow_loss(&velocity, &self.inputs.latents, &self.inputs.noise)?;
            self.terms.flow = Some(flow.detach());
            loss.add((flow * self.config.flow_weight)?)?;
        }
        drop(streams);
        let mut above = self.backward(loss, &start)?;
        let first = self.parameters.first_block();
        for layer in (first..recomputed).rev() {
            let Some(input) = kept.pop() else { break };
            let leaf = if layer > first { Leaf::new(&input)? } else { Leaf::constant(input) };
            let mut loss = Sum::default();
            if layer == self.expert_layer && !with_flow {
                let probe = self.model.blocks[layer].probe(&leaf.streams, &self.conditioning)?;
                self.align(&probe, &mut loss)?;
            } else {
                let (out, probe) = self.model.blocks[layer].forward(&leaf.streams, &self.conditioning)?;
                // In the order of the undivided graph, so that sums come out the same to the bit.
                if layer == self.expert_layer {
                    self.align(&probe, &mut loss)?;
                }
                for (out, grad) in [(&out.image, &above.0), (&out.text, &above.1)] {
                    if let Some(grad) = grad {
                        loss.add((out * grad)?.sum_all()?.to_dtype(DType::F32)?)?;
                    }
                }
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

    /// Begins to match the expert's attention with the masks, to be finished by [`Self::align`].
    fn begin_matching(&mut self, probe: &Probe) -> Result<()> {
        self.matchings = self.alignment().begin(probe)?;
        Ok(())
    }

    /// Adds the alignment loss of the expert's attention.
    fn align(&mut self, probe: &Probe, loss: &mut Sum) -> Result<()> {
        let matchings = std::mem::take(&mut self.matchings);
        let found = self.alignment().loss(probe, matchings)?;
        let terms = &mut self.terms;
        match found {
            AlignmentLoss::None => Ok(()),
            AlignmentLoss::Sigmoid { focal, dice } => {
                (terms.focal, terms.dice) = (Some(focal.detach()), Some(dice.detach()));
                loss.add(((focal * self.config.focal_weight)? + (dice * self.config.dice_weight)?)?)
            }
            AlignmentLoss::Softmax { align } => {
                terms.align = Some(align.detach());
                loss.add((align * self.config.align_weight)?)
            }
        }
    }

    /// Pulls the loss back: adds to the parameters' gradients, returns those of the leaf's streams.
    fn backward(&mut self, loss: Sum, leaf: &Leaf) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(loss) = loss.0.filter(Tensor::track_op) else { return Ok((None, None)) };
        let grads = loss.backward()?;
        for (parameter, sum) in self.parameters.all.iter().zip(&mut self.gradients) {
            if let Some(grad) = grads.get(parameter.var.as_tensor()) {
                *sum = Some(match sum.take() {
                    None => grad.clone(),
                    Some(sum) => (sum + grad)?,
                });
            }
        }
        Ok(leaf.gradients(&grads))
    }
}

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

    fn gradients(&self, grads: &GradStore) -> (Option<Tensor>, Option<Tensor>) {
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
}
