//! Loss terms and gradients of one micro-batch, with blocks recomputed where memory asks for it.
use super::gradient_buffer::GradientBuffer;
use super::parameters::Parameters;
use crate::autograd::{Variable, backward};
use crate::config::LossConfig;
use crate::loss::{AlignmentLoss, MaskAlignment, Matching, SampleTargets, flow_loss};
use crate::model::families::{Conditioning, Probe, Streams, Transformer};
use crate::model::text::TextEmbedding;
use candle_core::{Result, Tensor};

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
    /// Text embeddings of the batch.
    pub text: TextEmbedding,
    /// One for each image.
    pub targets: Vec<SampleTargets>,
}

/// Unweighted loss terms, and their weighted sum; absent terms were not computed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossTerms {
    /// The weighted sum, which is minimised.
    pub total: f32,
    /// Flow loss; absent where its weight is 0.
    pub flow: Option<f32>,
    /// Focal loss; absent without masks.
    pub focal: Option<f32>,
    /// Dice loss; absent without masks.
    pub dice: Option<f32>,
    /// Cross-entropy of the softmax form; absent without masks.
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

/// Loss terms and gradients of a micro-batch, which a GPU may not have finished.
pub struct StepGradients {
    /// Of the weighted loss.
    pub buffer: GradientBuffer,
    pending: PendingLossTerms,
    config: LossConfig,
}

impl StepGradients {
    /// The loss terms. The host waits for them, and so for the whole step.
    pub fn terms(&self) -> Result<LossTerms> {
        let value = |term: &Option<Tensor>| term.as_ref().map(|term| term.to_scalar::<f32>()).transpose();
        let (flow, focal) = (value(&self.pending.flow)?, value(&self.pending.focal)?);
        let (dice, align) = (value(&self.pending.dice)?, value(&self.pending.align)?);
        let weighted = [
            (flow, self.config.flow_weight),
            (focal, self.config.focal_weight),
            (dice, self.config.dice_weight),
            (align, self.config.align_weight),
        ];
        let total = weighted.iter().map(|(term, weight)| term.unwrap_or(0.0) * *weight as f32).sum();
        Ok(LossTerms { total, flow, focal, dice, align })
    }
}

/// Loss terms while they are still on their device.
#[derive(Default)]
struct PendingLossTerms {
    flow: Option<Tensor>,
    focal: Option<Tensor>,
    dice: Option<Tensor>,
    align: Option<Tensor>,
}

/// One forward and backward pass.
///
/// # Errors
/// Inputs that do not fit the model, or an operation that fails.
pub fn gradients(
    model: &Transformer,
    parameters: &Parameters,
    config: &LossConfig,
    inputs: &StepInputs,
    plan: StepPlan<'_>,
) -> Result<StepGradients> {
    let sigma = inputs.sigma.reshape(((), 1, 1, 1))?;
    let noised = (inputs.latents.broadcast_mul(&(1.0 - &sigma)?)? + inputs.noise.broadcast_mul(&sigma)?)?;
    let embedded = model.embedding.embed_prompt(&noised, &inputs.timestep, &inputs.text, parameters.prompt(), None)?;
    let mut step = Step {
        model,
        first_trained: parameters.first_block(),
        score_head: parameters.score_head(),
        config,
        inputs,
        conditioning: embedded.conditioning,
        grid: embedded.grid,
        expert_layers: plan.expert_layers,
        probes: vec![],
        matchings: vec![],
        probe_gradients: vec![],
        terms: PendingLossTerms::default(),
    };
    let buffer = GradientBuffer::of(parameters, || step.run(embedded.streams, plan.recomputed_blocks))?;
    Ok(StepGradients { buffer, pending: step.terms, config: config.clone() })
}

struct Step<'a> {
    model: &'a Transformer,
    /// The lowest block that a gradient is needed of.
    first_trained: usize,
    score_head: Option<Vec<Variable>>,
    config: &'a LossConfig,
    inputs: &'a StepInputs,
    conditioning: Conditioning,
    grid: (usize, usize),
    expert_layers: &'a [usize],
    /// The experts' queries and keys as leaves of the mask loss, of those experts that have run.
    probes: Vec<Probe>,
    /// Begun when the last expert has run.
    matchings: Vec<Matching>,
    /// Gradients of the mask loss by the experts' queries and keys.
    probe_gradients: Vec<[Option<Tensor>; 2]>,
    terms: PendingLossTerms,
}

/// Gradients of the loss by variables from which a backward pass begins.
type Roots = Vec<(Variable, Tensor)>;

/// Gradients of an image and a text stream, where the loss depends on them.
type StreamGradients = (Option<Tensor>, Option<Tensor>);

impl Step<'_> {
    fn run(&mut self, mut streams: Streams, recomputed: usize) -> Result<()> {
        let with_flow = self.with_flow();
        // The mask loss reaches no further than the last expert.
        let blocks = if with_flow { self.model.blocks.len() } else { self.last_expert() + 1 };
        let recomputed = recomputed.min(blocks);
        let mut inputs = Vec::with_capacity(recomputed);
        for layer in 0..recomputed {
            let (out, probe) = self.block(layer, &streams.detach())?;
            inputs.push(std::mem::replace(&mut streams, out.detach()));
            probe.map_or(Ok(()), |probe| self.keep(layer, &probe))?;
        }

        let start = if recomputed > self.first_trained { leaves(&streams) } else { streams };
        let mut streams = start.clone();
        let mut experts = vec![];
        for layer in recomputed..blocks {
            let (out, probe) = self.block(layer, &streams)?;
            streams = out;
            if let Some(probe) = probe {
                self.keep(layer, &probe)?;
                experts.push((layer, probe));
            }
        }
        let finish = || self.model.embedding.finish(&streams.image, &self.conditioning, self.grid);
        let velocity = with_flow.then(finish).transpose()?;
        drop(streams);
        self.align()?;
        let mut roots = Roots::new();
        for (layer, probe) in experts {
            roots.extend(self.expert_roots(layer, &probe));
        }
        if let Some(velocity) = velocity {
            let flow = flow_loss(&velocity, &self.inputs.latents, &self.inputs.noise)?;
            self.terms.flow = Some(flow.tensor().clone());
            roots.push(weighted(flow, self.config.flow_weight)?);
        }
        backward(roots)?;
        self.recompute(inputs, stream_gradients(&start))
    }

    /// Runs the blocks of which there are the `inputs` again, from the last down, and carries the loss back through each;
    /// `above` are the gradients of the last one's output.
    fn recompute(&mut self, mut inputs: Vec<Streams>, mut above: StreamGradients) -> Result<()> {
        for layer in (self.first_trained..inputs.len()).rev() {
            let Some(input) = inputs.pop() else { break };
            let start = if layer > self.first_trained { leaves(&input) } else { input };
            let (out, probe) = self.block(layer, &start)?;
            let mut roots = probe.map_or(vec![], |probe| self.expert_roots(layer, &probe));
            roots.extend(above.0.map(|gradient| (out.image, gradient)));
            roots.extend(above.1.map(|gradient| (out.text, gradient)));
            backward(roots)?;
            above = stream_gradients(&start);
        }
        Ok(())
    }

    /// Runs block `layer`: its output, and its probe where it is an expert whose attention the mask loss compares. Without a
    /// flow loss the last expert is run for its probe alone, and passes its input on.
    fn block(&self, layer: usize, streams: &Streams) -> Result<(Streams, Option<Probe>)> {
        let block = &self.model.blocks[layer];
        let has_masks = self.inputs.targets.iter().any(|of| !of.masks.is_empty());
        let is_compared = has_masks && self.expert_layers.contains(&layer);
        if layer == self.last_expert() && !self.with_flow() {
            let probe = is_compared.then(|| block.probe(streams, &self.conditioning));
            return Ok((streams.clone(), probe.transpose()?));
        }
        let (out, joint) = block.forward(streams, &self.conditioning)?;
        Ok((out, is_compared.then(|| joint.probe()).transpose()?))
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

    fn with_flow(&self) -> bool {
        self.config.flow_weight > 0.0
    }

    fn last_expert(&self) -> usize {
        self.expert_layers.last().copied().unwrap_or(0)
    }

    /// Keeps a copy of an expert's probe, with leaves, for [`Self::align`]; with the last expert's the matching begins.
    fn keep(&mut self, layer: usize, probe: &Probe) -> Result<()> {
        self.probes.push(Probe { queries: leaf(&probe.queries), keys: leaf(&probe.keys), ..*probe });
        if layer == self.last_expert() {
            self.matchings = self.alignment().begin(&self.probes)?;
        }
        Ok(())
    }

    /// The alignment loss of the experts' attention, and its gradients: those of the score head, and those of the experts'
    /// queries and keys, for [`Self::expert_roots`].
    fn align(&mut self) -> Result<()> {
        let (probes, matchings) = (std::mem::take(&mut self.probes), std::mem::take(&mut self.matchings));
        if probes.is_empty() {
            return Ok(());
        }
        let found = self.alignment().loss(&probes, matchings)?;
        let (terms, config) = (&mut self.terms, self.config);
        let roots = match found {
            AlignmentLoss::None => return Ok(()),
            AlignmentLoss::Sigmoid { focal, dice } => {
                (terms.focal, terms.dice) = (Some(focal.tensor().clone()), Some(dice.tensor().clone()));
                vec![weighted(focal, config.focal_weight)?, weighted(dice, config.dice_weight)?]
            }
            AlignmentLoss::Softmax { align } => {
                terms.align = Some(align.tensor().clone());
                vec![weighted(align, config.align_weight)?]
            }
        };
        backward(roots)?;
        let of = |probe: &Probe| [probe.queries.take_gradient(), probe.keys.take_gradient()];
        self.probe_gradients = probes.iter().map(of).collect();
        Ok(())
    }

    /// The gradients of the alignment loss by the queries and keys of block `layer`, where that is an expert.
    fn expert_roots(&mut self, layer: usize, probe: &Probe) -> Roots {
        let expert = self.expert_layers.iter().position(|expert| *expert == layer);
        let Some(gradients) = expert.and_then(|expert| self.probe_gradients.get_mut(expert)) else { return vec![] };
        let variables = [&probe.queries, &probe.keys];
        let roots = variables.into_iter().zip(gradients);
        roots.filter_map(|(variable, gradient)| Some((variable.clone(), gradient.take()?))).collect()
    }
}

/// A term of the loss as a root.
fn weighted(term: Variable, weight: f64) -> Result<(Variable, Tensor)> {
    let gradient = (term.tensor().ones_like()? * weight)?;
    Ok((term, gradient))
}

/// A copy that a gradient is wanted of.
fn leaf(variable: &Variable) -> Variable {
    Variable::leaf(variable.tensor().clone())
}

/// Streams that gradients are wanted of.
fn leaves(streams: &Streams) -> Streams {
    Streams { image: leaf(&streams.image), text: leaf(&streams.text), last_text_count: streams.last_text_count }
}

fn stream_gradients(streams: &Streams) -> StreamGradients {
    (streams.image.take_gradient(), streams.text.take_gradient())
}
