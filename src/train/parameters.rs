//! What is trained: adapters and the score head, by name, always in f32.
use crate::autograd::Variable;
use crate::config::{LayerChoice, OptimConfig, RunConfig};
use crate::model::adapters::lora::LoraSettings;
use crate::model::adapters::{AdapterSettings, Adapters, TrainedAdapters};
use crate::model::families::{AdaptableLayer, Transformer};
use crate::model::text::TextEmbedding;
use crate::ops;
use crate::report::TrainedLayers;
use crate::system::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Name of the prompt's parameter.
const PROMPT: &str = "prompt.tokens";

/// Values that a parameter's place in the buffer is aligned to: 256 bytes, as memory of its own would be on a GPU.
pub const ALIGNMENT: usize = 64;

/// Which learning rate a parameter follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Matrices of adapters.
    Lora,
    /// Weights of the score head.
    ScoreHead,
    /// Token embeddings of a learnable prompt.
    Prompt,
}

impl Group {
    /// The group's learning rate where the score head's is `lr`.
    pub fn learning_rate(self, lr: f64, config: &OptimConfig) -> f64 {
        match self {
            Self::Lora => lr * config.lora_lr_scale,
            Self::ScoreHead | Self::Prompt => lr,
        }
    }
}

/// One trained tensor: its place in the flat buffer.
pub struct Parameter {
    /// `lora.LAYER.down`, `….up`, `score_head.0.weight`, or `prompt.tokens`.
    pub name: String,
    /// What it belongs to, which decides its learning rate.
    pub group: Group,
    /// Where its values lie in [`Parameters::buffer`].
    pub range: Range<usize>,
    /// Its values; they share the buffer's memory.
    pub values: Tensor,
    /// The variable that the model sees, of the same memory.
    pub leaf: Variable,
}

impl Parameter {
    /// A parameter with memory of its own, until [`Parameters::pack`] gives it a place.
    fn new(name: String, group: Group, values: Tensor) -> candle_core::Result<Self> {
        let values = values.contiguous()?;
        Ok(Self { name, group, range: 0..values.elem_count(), leaf: Variable::leaf(values.clone()), values })
    }

    /// What belongs to this parameter in `[count]` values that are laid out as the parameters are, in its shape; it shares
    /// their memory.
    pub fn view(&self, all: &Tensor) -> candle_core::Result<Tensor> {
        all.narrow(0, self.range.start, self.range.len())?.reshape(self.values.shape())
    }

    /// Takes these values.
    ///
    /// # Errors
    /// They are of another shape.
    pub fn set(&self, values: &Tensor) -> Result<()> {
        if values.dims() != self.values.dims() {
            let (found, expected) = (values.dims(), self.values.dims());
            return Err(Error::Failed(format!("{} has shape {found:?}, expected {expected:?}", self.name)));
        }
        Ok(self.values.slice_set(&values.to_device(self.values.device())?.contiguous()?, 0, 0)?)
    }
}

/// All trained parameters in a fixed order: adapters in the order of the model, then the score head, then the prompt.
pub struct Parameters {
    /// All trained tensors, in the order of their names in checkpoints.
    pub all: Vec<Parameter>,
    /// The values of all, one after the other, each from a multiple of [`ALIGNMENT`].
    buffer: Tensor,
    /// The layers with an adapter, in order; their parameters come first in `all`.
    layers: Vec<AdaptedLayer>,
    settings: Box<dyn AdapterSettings>,
}

/// A layer with an adapter.
struct AdaptedLayer {
    /// In diffusers' names: that of its block, and its own within the block.
    name: String,
    block: usize,
    within: &'static str,
}

impl Parameters {
    /// Fresh parameters, the LoRA's as the configuration says; see [`Self::of_kind`].
    pub fn new(config: &RunConfig, model: &mut Transformer, device: &Device) -> Result<Self> {
        let settings = LoraSettings { rank: config.lora.rank, alpha: config.lora.alpha };
        Self::of_kind(Box::new(settings), config, model, device)
    }

    /// Fresh parameters for the configured targets and layers of `model`, the same for the same seed; the score head as
    /// torch's `Conv2d`.
    ///
    /// Fails if no layer matches, naming what could.
    pub fn of_kind(
        settings: Box<dyn AdapterSettings>,
        config: &RunConfig,
        model: &mut Transformer,
        device: &Device,
    ) -> Result<Self> {
        let (mut all, mut layers) = (vec![], vec![]);
        for AdaptableLayer { name, block, within, projection } in chosen_layers(config, model)? {
            let values = settings.create(projection.weight(), &mut random(config.seed, &name), device)?;
            for (parameter, values) in settings.parameters().iter().zip(values) {
                let parameter = format!("{}.{name}.{parameter}", settings.kind());
                all.push(Parameter::new(parameter, Group::Lora, values)?);
            }
            layers.push(AdaptedLayer { name, block, within });
        }
        if config.loss.uses_score_head() {
            for (name, shape) in ops::PARAMETERS {
                let mut random = random(config.seed, &format!("score_head.{name}"));
                // torch: weight and bias uniform within 1/sqrt(fan in)
                let fan_in = if name.starts_with('0') { 9 } else { 9 * ops::CHANNELS };
                let bound = 1.0 / (fan_in as f32).sqrt();
                let values = (0..shape.iter().product()).map(|_| random.random_range(-bound..bound)).collect();
                let values = Tensor::from_vec::<_, f32>(values, shape, device)?;
                all.push(Parameter::new(format!("score_head.{name}"), Group::ScoreHead, values)?);
            }
        }
        Ok(Self { buffer: Self::pack(&mut all)?, all, layers, settings })
    }

    /// Moves all values into one buffer.
    fn pack(all: &mut [Parameter]) -> Result<Tensor> {
        let mut end = 0;
        for parameter in all.iter_mut() {
            parameter.range = end..end + parameter.range.len();
            end = parameter.range.end.next_multiple_of(ALIGNMENT);
        }
        let device = all.first().map_or(Device::Cpu, |parameter| parameter.values.device().clone());
        let buffer = Tensor::zeros(end, DType::F32, &device)?;
        for parameter in all {
            let values = parameter.view(&buffer)?;
            values.slice_set(&parameter.values, 0, 0)?;
            parameter.leaf = Variable::leaf(values.clone());
            parameter.values = values;
        }
        Ok(buffer)
    }

    /// The values of all parameters, one after the other: `[count]` in f32, with zeros between them.
    pub fn buffer(&self) -> &Tensor {
        &self.buffer
    }

    /// Adds the token embeddings of a prompt, `[tokens, width]`, which are trained from those of `start`, one prompt's.
    pub fn add_prompt(&mut self, start: &TextEmbedding) -> Result<()> {
        let values = start.context.squeeze(0)?.to_dtype(DType::F32)?;
        self.all.push(Parameter::new(PROMPT.to_string(), Group::Prompt, values)?);
        self.buffer = Self::pack(&mut self.all)?;
        Ok(())
    }

    /// The token embeddings of the prompt that is trained, if one is: `[tokens, width]`.
    pub fn prompt(&self) -> Option<&Variable> {
        self.all.iter().find(|p| p.group == Group::Prompt).map(|p| &p.leaf)
    }

    /// Overwrites all parameters; `tensors` must have exactly their names and shapes.
    pub fn load(&self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let names: Vec<&String> = self.all.iter().map(|p| &p.name).collect();
        if let Some(name) = tensors.keys().find(|name| !names.contains(name)) {
            return Err(Error::Failed(format!("checkpoint: {name} is not trained by this configuration")));
        }
        for parameter in &self.all {
            let Some(tensor) = tensors.get(&parameter.name) else {
                return Err(Error::Failed(format!("checkpoint: {} is missing", parameter.name)));
            };
            parameter.set(tensor).map_err(|problem| Error::Failed(format!("checkpoint: {problem}")))?;
        }
        Ok(())
    }

    /// Copies on the CPU, by name.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let names = self.all.iter().map(|p| p.name.clone());
        Ok(names.zip(self.split(&self.buffer)?).collect())
    }

    /// Copies on the CPU of what belongs to each parameter in `all`, which is laid out as the parameters are.
    pub fn split(&self, all: &Tensor) -> Result<Vec<Tensor>> {
        let all = all.to_device(&Device::Cpu)?;
        self.all.iter().map(|p| Ok(p.view(&all)?.force_contiguous()?)).collect()
    }

    /// The adapters as a step differentiates them; they share the parameters' memory, so that a step shows in the model that
    /// they are attached to.
    pub fn trained(&self) -> Result<TrainedAdapters> {
        let leaves = |parameters: &[Parameter]| parameters.iter().map(|p| p.leaf.clone()).collect();
        let parameters = self.of_layers().map(|(layer, of_layer)| (layer.name.clone(), leaves(of_layer)));
        Ok(TrainedAdapters { adapters: self.adapters()?, parameters: parameters.collect() })
    }

    /// The adapters without gradient, in the parameters' memory.
    pub fn adapters(&self) -> Result<Adapters> {
        let adapter = |(layer, parameters): (&AdaptedLayer, &[Parameter])| {
            let parameters = parameters.iter().map(|p| p.values.clone()).collect();
            Ok((layer.name.clone(), self.settings.adapter(parameters)?))
        };
        self.of_layers().map(adapter).collect()
    }

    /// Takes the values of `adapters`, which are of the kind and on the layers that are trained.
    ///
    /// # Errors
    /// One is of another shape, or missing.
    pub fn set_adapters(&self, adapters: &Adapters) -> Result<()> {
        for (layer, parameters) in self.of_layers() {
            let values = adapters.get(&layer.name).map_or(vec![], |adapter| adapter.parameters());
            if values.len() != parameters.len() {
                return Err(Error::Failed(format!("{} has another adapter", layer.name)));
            }
            parameters.iter().zip(values).try_for_each(|(parameter, values)| parameter.set(values))?;
        }
        Ok(())
    }

    /// Every layer with an adapter, and the adapter's parameters.
    fn of_layers(&self) -> impl Iterator<Item = (&AdaptedLayer, &[Parameter])> {
        self.layers.iter().zip(self.all.chunks_exact(self.settings.parameters().len()))
    }

    /// Parameters that must change for the adapters to do something else than at their start.
    pub fn effective(&self) -> impl Iterator<Item = &Parameter> {
        let names = self.settings.effective();
        let is_effective = |p: &&Parameter| p.name.rsplit('.').next().is_some_and(|name| names.contains(&name));
        self.of_layers().flat_map(|(_, parameters)| parameters).filter(is_effective)
    }

    /// The score head's parameters in the order of [`ops::PARAMETERS`]; none if it is not used.
    pub fn score_head(&self) -> Option<Vec<Variable>> {
        let head: Vec<Variable> =
            self.all.iter().filter(|p| p.group == Group::ScoreHead).map(|p| p.leaf.clone()).collect();
        (!head.is_empty()).then_some(head)
    }

    /// The lowest block with an adapter: no gradient is needed below it. That of a prompt goes through all.
    pub fn first_block(&self) -> usize {
        if self.prompt().is_some() {
            return 0;
        }
        self.layers.iter().map(|layer| layer.block).min().unwrap_or(0)
    }

    /// Number of trained values.
    pub fn count(&self) -> usize {
        self.all.iter().map(|p| p.range.len()).sum()
    }

    /// What is trained: each kind of layer, with how many of the model's `blocks` have it.
    pub fn layers(&self, blocks: usize) -> Vec<TrainedLayers> {
        let mut kinds: BTreeMap<String, (BTreeSet<usize>, usize)> = BTreeMap::new();
        let mut add = |kind: String, block: Option<usize>, parameter: &Parameter| {
            let (found, count) = kinds.entry(kind).or_default();
            found.extend(block);
            *count += parameter.range.len();
        };
        for (layer, parameters) in self.of_layers() {
            let kind = || format!("{} {}", self.settings.title(), layer.within);
            parameters.iter().for_each(|parameter| add(kind(), Some(layer.block), parameter));
        }
        for parameter in &self.all {
            match parameter.group {
                Group::Lora => {}
                Group::ScoreHead => add("score head".to_string(), None, parameter),
                Group::Prompt => add("prompt".to_string(), None, parameter),
            }
        }
        let layers = |(kind, (found, parameters)): (String, (BTreeSet<usize>, usize))| TrainedLayers {
            kind,
            blocks: (!found.is_empty()).then_some((found.len(), blocks)),
            rank: self.settings.rank().filter(|_| !found.is_empty()),
            parameters,
        };
        kinds.into_iter().map(layers).collect()
    }

    /// [`Self::layers`] as a table for people: a line a kind of layer.
    pub fn table(&self, blocks: usize) -> String {
        let mut table = format!("{:<28} {:>8} {:>6} {:>12}\n", "trained", "blocks", "rank", "parameters");
        for TrainedLayers { kind, blocks, rank, parameters } in self.layers(blocks) {
            let blocks = blocks.map(|(some, all)| format!("{some}/{all}")).unwrap_or_default();
            let rank = rank.map(|rank| rank.to_string()).unwrap_or_default();
            table += &format!("{kind:<28} {blocks:>8} {rank:>6} {parameters:>12}\n");
        }
        table + &format!("{:<28} {:>8} {:>6} {:>12}", "total", "", "", self.count())
    }
}

/// Layers that get an adapter: targets on the configured blocks that the loss depends on.
fn chosen_layers<'a>(config: &RunConfig, model: &'a mut Transformer) -> Result<Vec<AdaptableLayer<'a>>> {
    if let LayerChoice::List(layers) = &config.lora.layers {
        layers.iter().try_for_each(|layer| model.config.check_block("lora.layers: block", *layer))?;
    }
    let reaches = reaches_loss(config, model);
    let is_wanted = |layer: &AdaptableLayer| match &config.lora.layers {
        LayerChoice::All => true,
        LayerChoice::List(layers) => layers.contains(&layer.block),
    };
    let possible = model.adaptable().into_iter().zip(reaches);
    let possible = possible.filter(|(layer, reaches)| *reaches && is_wanted(layer)).map(|(layer, _)| layer);
    let possible: Vec<AdaptableLayer> = possible.collect();
    let within: BTreeSet<&str> = possible.iter().map(|layer| layer.within).collect();
    let targets = &config.lora.targets;
    if let Some(target) = targets.iter().find(|target| !within.contains(target.as_str())) {
        let names = within.into_iter().collect::<Vec<_>>().join(", ");
        let problem = format!("\"{target}\" matches no layer; the blocks that are trained have {names}");
        return Err(Error::Usage(format!("lora.targets: {problem}")));
    }
    let is_target = |layer: &AdaptableLayer| targets.iter().any(|target| target == layer.within);
    let chosen: Vec<AdaptableLayer> = possible.into_iter().filter(is_target).collect();
    if chosen.is_empty() {
        return Err(Error::Usage("lora.targets and lora.layers match no layer of the model".into()));
    }
    Ok(chosen)
}

/// Whether the loss depends on each of the layers that an adapter can sit on. The mask loss alone sees nothing above the
/// expert block, and of that block only what its probe is made of.
fn reaches_loss(config: &RunConfig, model: &mut Transformer) -> Vec<bool> {
    let (expert, image_keys) = (config.model.last_expert(), config.loss.sees_image_keys());
    let layers: Vec<(usize, &str)> = model.adaptable().iter().map(|layer| (layer.block, layer.within)).collect();
    let reaches = |(block, within): (usize, &str)| match config.loss.flow_weight > 0.0 {
        true => model.blocks[block].reaches_output(within),
        false => block < expert || (block == expert && model.blocks[block].reaches_probe(within, image_keys)),
    };
    layers.into_iter().map(reaches).collect()
}

/// Random numbers of one parameter: they depend on the seed and its name alone.
fn random(seed: u64, name: &str) -> ChaCha8Rng {
    let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name.as_bytes()).finalize();
    ChaCha8Rng::from_seed(digest.into())
}
