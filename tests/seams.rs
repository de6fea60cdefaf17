//! A family and a kind of adapter that only this file knows: they load, train and export through what the library offers
//! to any.
use candle_core::{DType, Device, Result as TensorResult, Tensor};
use rand_chacha::ChaCha8Rng;
use seg4diff::Result;
use seg4diff::autograd::Variable;
use seg4diff::config::RunConfig;
use seg4diff::loss::{MaskTarget, SampleTargets};
use seg4diff::model::adapters::formats::{Origin, export, read_kinds};
use seg4diff::model::adapters::stored::{Format, LayerTensors, PeftConfig};
use seg4diff::model::adapters::{Adapter, AdapterFiles, AdapterSettings, Adapters, Attached};
use seg4diff::model::families::sd3::MmDitConfig;
use seg4diff::model::families::{
    Block, Blur, Conditioning, Embedded, Embedding, Family, FamilyConfig, Guidance, JointInputs, KnownFamily,
    KohyaNames, PipelineNames, Probe, SavedActivations, SigmaSpacing, Streams, TextForm, Transformer,
    TransformerConfig,
};
use seg4diff::model::projection::Projection;
use seg4diff::model::text::TextEmbedding;
use seg4diff::model::weights::files::ModelFiles;
use seg4diff::model::weights::{self, Weights, read_all};
use seg4diff::ops::{self, FrozenLayer, FrozenWeight, Layer, Target};
use seg4diff::sample::noise::normal;
use seg4diff::train::gradients::{StepGradients, StepInputs, StepPlan, gradients};
use seg4diff::train::parameters::Parameters;
use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

const CPU: Device = Device::Cpu;

// A family: one stream, text first, one attention and nothing else; five text tokens, of which the last three are words'.

const WIDTH: usize = 8;
const HEADS: usize = 2;
const CHANNELS: usize = 3;
const CONTEXT: usize = 6;
const WORDS: usize = 4;
const LAYERS: [&str; 4] = ["query", "key", "value", "out"];

#[derive(serde::Deserialize)]
struct Toy {
    depth: usize,
}

impl FamilyConfig for Toy {
    fn checked(self, _: &Path) -> Result<Self> {
        Ok(self)
    }

    fn general(&self) -> TransformerConfig {
        TransformerConfig {
            block_lists: vec![("layers", self.depth)],
            num_attention_heads: HEADS,
            attention_head_dim: WIDTH / HEADS,
            in_channels: CHANNELS,
            patch_size: 1,
            max_grid: usize::MAX,
            joint_attention_dim: CONTEXT,
            pooled_projection_dim: 0,
            usual_guidance_scale: 7.0,
            guidance: Guidance::TwoPasses,
            release: None,
        }
    }
}

impl Family for Toy {
    const PIPELINE: &'static PipelineNames = &PipelineNames {
        name: "toy",
        class: "ToyPipeline",
        transformer_class: "ToyTransformer",
        encoders: &[],
        usual_encoders: &[],
        max_sequence_length: WORDS + 1,
        steps: 28,
        text: TextForm::T5,
        words: WORDS,
        block_counts: &["depth"],
        packed_side: 1,
        sigma_spacing: SigmaSpacing::Trained,
        kohya: &KohyaNames {
            architecture: "toy",
            implementation: "toy",
            network_module: "toy",
            blocks: &[],
            swaps_halves: |_, _| false,
            fits: |_, _| true,
        },
        original: None,
    };

    fn embedding(&self, weights: &Weights, _: DType) -> Result<Box<dyn Embedding>> {
        Ok(Box::new(ToyEmbedding {
            latents: Projection::load(weights, "latents", CHANNELS, WIDTH)?,
            text: Projection::load(weights, "text", CONTEXT, WIDTH)?,
            velocity: Projection::load(weights, "velocity", WIDTH, CHANNELS)?,
        }))
    }

    fn block(&self, weights: &Weights, layer: usize) -> Result<Box<dyn Block>> {
        let load = |name| Projection::load(weights, &format!("layers.{layer}.{name}"), WIDTH, WIDTH);
        Ok(Box::new(ToyBlock { query: load("query")?, key: load("key")?, value: load("value")?, out: load("out")? }))
    }
}

struct ToyEmbedding {
    latents: Projection,
    text: Projection,
    velocity: Projection,
}

impl Embedding for ToyEmbedding {
    fn embed_prompt(
        &self,
        latents: &Tensor,
        timestep: &Tensor,
        text: &TextEmbedding,
        _: Option<&Variable>,
        _: Option<f64>,
    ) -> TensorResult<Embedded> {
        let (batch, channels, rows, columns) = latents.dims4()?;
        let tokens = latents.reshape((batch, channels, rows * columns))?.transpose(1, 2)?.contiguous()?;
        Ok(Embedded {
            streams: Streams {
                image: self.latents.forward(&tokens.into())?,
                text: self.text.forward(&text.context.clone().into())?,
                last_text_count: 1,
            },
            conditioning: Conditioning::of((timestep.reshape((batch, 1))? / 1000.0)?),
            grid: (rows, columns),
        })
    }

    fn finish(&self, image: &Variable, _: &Conditioning, (rows, columns): (usize, usize)) -> TensorResult<Variable> {
        let (batch, ..) = image.dims3()?;
        self.velocity.forward(image)?.permute(&[0, 2, 1])?.reshape((batch, CHANNELS, rows, columns))
    }
}

struct ToyBlock {
    query: Projection,
    key: Projection,
    value: Projection,
    out: Projection,
}

/// The first tokens of a sequence and the others, the other way round.
fn rotated(x: &Variable, first: usize) -> TensorResult<Variable> {
    let (_, all, _) = x.dims3()?;
    ops::cat(&[x.window(1, first..all)?, x.window(1, 0..first)?], 1)
}

impl ToyBlock {
    /// The joint sequence, text first, and what goes into its attention, image first.
    fn inputs(&self, streams: &Streams, conditioning: &Conditioning) -> TensorResult<(Variable, JointInputs)> {
        let ((batch, text, _), (_, image_tokens, _)) = (streams.text.dims3()?, streams.image.dims3()?);
        let joint = ops::cat(&[streams.text.clone(), streams.image.clone()], 1)?;
        let shift =
            conditioning.vector.unsqueeze(1)?.broadcast_as((batch, text + image_tokens, WIDTH))?.contiguous()?;
        let conditioned = ops::add(&joint, &shift.into())?;
        let inputs = JointInputs {
            queries: rotated(&self.query.forward(&conditioned)?, text)?,
            keys: rotated(&self.key.forward(&conditioned)?, text)?,
            values: rotated(&self.value.forward(&conditioned)?, text)?,
            image_tokens,
            heads: HEADS,
            last_key_count: 1,
            words: WORDS,
        };
        Ok((joint, inputs))
    }
}

impl Block for ToyBlock {
    fn projections(&mut self) -> Vec<(&'static str, &mut Projection)> {
        LAYERS.into_iter().zip([&mut self.query, &mut self.key, &mut self.value, &mut self.out]).collect()
    }

    fn probe(&self, streams: &Streams, conditioning: &Conditioning) -> TensorResult<Probe> {
        self.inputs(streams, conditioning)?.1.probe()
    }

    fn forward_with(
        &self,
        streams: &Streams,
        conditioning: &Conditioning,
        attend: &mut dyn FnMut(&JointInputs) -> TensorResult<Variable>,
    ) -> TensorResult<(Streams, JointInputs)> {
        let (joint, inputs) = self.inputs(streams, conditioning)?;
        let attended = rotated(&attend(&inputs)?, inputs.image_tokens)?;
        let out = ops::add(&joint, &self.out.forward(&attended)?)?;
        let ((_, text, _), (_, all, _)) = (streams.text.dims3()?, out.dims3()?);
        let (text, image) = (out.window(1, 0..text)?, out.window(1, text..all)?);
        Ok((Streams { image, text, last_text_count: 1 }, inputs))
    }

    fn reaches_output(&self, _: &str) -> bool {
        true
    }

    fn reaches_probe(&self, layer: &str, _: bool) -> bool {
        ["query", "key"].contains(&layer)
    }

    /// The stream, queries, keys, values and the attention's result.
    fn saved_activations(&self) -> SavedActivations {
        SavedActivations { image: 5, text: 5 }
    }
}

/// A folder with a toy model of random weights.
fn toy_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    let transformer = folder.path().join("transformer");
    std::fs::create_dir(&transformer).expect("folder");
    std::fs::write(folder.path().join("model_index.json"), r#"{"_class_name": "ToyPipeline"}"#).expect("write");
    std::fs::write(transformer.join("config.json"), r#"{"_class_name": "ToyTransformer", "depth": 2}"#).expect("write");
    let mut layers = vec![
        ("latents".to_string(), CHANNELS, WIDTH),
        ("text".into(), CONTEXT, WIDTH),
        ("velocity".into(), WIDTH, CHANNELS),
    ];
    for layer in 0..2 {
        layers.extend(LAYERS.map(|name| (format!("layers.{layer}.{name}"), WIDTH, WIDTH)));
    }
    let mut tensors = BTreeMap::new();
    for (number, (name, inner, outer)) in (0..).zip(layers) {
        let random = |part: u64, shape: &[usize]| {
            (normal(5, &[number, part], shape, &CPU).expect("numbers") / (inner as f64).sqrt()).expect("numbers")
        };
        tensors.insert(format!("{name}.weight"), random(0, &[outer, inner]));
        tensors.insert(format!("{name}.bias"), random(1, &[outer]));
    }
    let file = transformer.join("diffusion_pytorch_model.safetensors");
    weights::write(&file, &tensors, &BTreeMap::new()).expect("write");
    folder
}

fn toy() -> Transformer {
    let folder = toy_folder();
    let files = ModelFiles::open(&folder.path().display().to_string()).expect("model");
    KnownFamily::of::<Toy>().load(&files, None, DType::F32, &CPU).expect("model")
}

// A kind of adapter: a multiple of each of a square layer's inputs is added to its outputs.

#[derive(Clone, Debug)]
struct Diagonal(Tensor);

#[derive(Debug)]
struct DiagonalSettings;

struct DiagonalFiles;

impl Adapter for Diagonal {
    fn attach(&self, parameters: Vec<Variable>) -> Result<Attached> {
        let diagonal = parameters[0].clone();
        let function = move |x: &Variable, layer: &FrozenLayer| {
            // x times the diagonal, as a product of matrices that the tape knows.
            let (batch, tokens, width) = x.dims3()?;
            let columns = diagonal.reshape((1, width))?.broadcast_left(width)?.reshape((width, width))?;
            let matrix = columns.mul_constant(&Tensor::eye(width, DType::F32, &CPU)?)?;
            let scaled = x.reshape((batch * tokens, width))?.matmul(&matrix)?.reshape((batch, tokens, width))?;
            ops::add(&ops::linear(x, Layer { frozen: layer, low_rank: None })?, &scaled)
        };
        Ok(Attached::Function(Box::new(function)))
    }

    fn parameters(&self) -> Vec<&Tensor> {
        vec![&self.0]
    }

    fn check(&self, (inner, outer): (usize, usize)) -> Result<(), String> {
        match [inner, outer] == [self.0.elem_count(); 2] {
            true => Ok(()),
            false => Err(format!("a diagonal of {} for {outer}×{inner}", self.0.elem_count())),
        }
    }

    fn delta(&self) -> TensorResult<Tensor> {
        Tensor::eye(self.0.elem_count(), DType::F32, &CPU)?.broadcast_mul(&self.0)
    }

    fn differences(&self, _: &dyn Adapter) -> Vec<(&'static str, String)> {
        vec![]
    }

    fn files(&self) -> &'static dyn AdapterFiles {
        &DiagonalFiles
    }

    fn stored(&self, _: Format) -> Result<Vec<(&'static str, Tensor)>> {
        Ok(vec![("diagonal", self.0.clone())])
    }

    fn sizes(&self) -> (usize, usize) {
        (self.0.elem_count(), self.0.elem_count())
    }

    fn outputs(&self, _: &[Range<usize>]) -> Result<Box<dyn Adapter>> {
        Ok(Box::new(self.clone()))
    }

    fn pruned(&self) -> Result<Option<Box<dyn Adapter>>> {
        Ok(Some(Box::new(self.clone())))
    }
}

impl AdapterSettings for DiagonalSettings {
    fn kind(&self) -> &'static str {
        "diagonal"
    }

    fn title(&self) -> &'static str {
        "diagonal"
    }

    fn rank(&self) -> Option<usize> {
        None
    }

    fn parameters(&self) -> &'static [&'static str] {
        &["diagonal"]
    }

    fn effective(&self) -> &'static [&'static str] {
        &["diagonal"]
    }

    fn create(&self, weight: &FrozenWeight, _: &mut ChaCha8Rng, device: &Device) -> Result<Vec<Tensor>> {
        Ok(vec![Tensor::zeros(weight.dims2()?.1, DType::F32, device)?])
    }

    fn adapter(&self, parameters: Vec<Tensor>) -> Result<Box<dyn Adapter>> {
        Ok(Box::new(Diagonal(parameters[0].clone())))
    }
}

impl AdapterFiles for DiagonalFiles {
    fn suffixes(&self, _: Format) -> &'static [&'static [&'static str]] {
        &[&["diagonal"]]
    }

    fn read(&self, _: &Path, layers: BTreeMap<String, LayerTensors>, _: Option<&PeftConfig>) -> Result<Adapters> {
        let read = |(layer, mut parts): (String, LayerTensors)| {
            (layer, Box::new(Diagonal(parts.remove(&0).expect("diagonal"))) as Box<dyn Adapter>)
        };
        Ok(layers.into_iter().map(read).collect())
    }

    fn peft_config(&self, _: &Adapters) -> Result<String> {
        Ok("{}".into())
    }

    fn kohya_metadata(&self, _: &Adapters) -> Vec<(&'static str, String)> {
        vec![]
    }

    fn fuse(&self, _: &[(usize, Option<&dyn Adapter>)]) -> Result<Box<dyn Adapter>> {
        Err(seg4diff::Error::Failed("diagonals of several layers are no diagonal".into()))
    }
}

// What both are trained on.

/// The left half or the right.
struct Half {
    left: bool,
    side: usize,
}

impl Target for Half {
    fn size(&self) -> (usize, usize) {
        (self.side, self.side)
    }

    fn row(&self, _: usize, out: &mut [f32]) {
        let half = out.len() / 2;
        out[..half].fill(f32::from(u8::from(self.left)));
        out[half..].fill(f32::from(u8::from(!self.left)));
    }
}

/// Two random images of two masks each, whose names are the second text token, and the third and fourth.
fn inputs(config: &TransformerConfig, text_tokens: usize) -> StepInputs {
    let side = 4;
    let grid = side / config.patch_size;
    let target = |class: usize| {
        let (pixels, small) = (Half { left: class == 0, side: 8 * side }, Half { left: class == 0, side: grid });
        let mut shrunk = vec![0f32; grid * grid];
        shrunk.chunks_exact_mut(grid).enumerate().for_each(|(y, row)| small.row(y, row));
        MaskTarget { pixels: Arc::new(pixels), grid: shrunk, area: 32 * side * side, class: Some(class) }
    };
    let targets = SampleTargets { masks: vec![target(0), target(1)], spans: vec![Some(1..2), Some(2..4)], words: None };
    let random = |stream: u64, shape: &[usize]| normal(9, &[stream], shape, &CPU).expect("numbers");
    let latents = [2, config.in_channels, side, side];
    StepInputs {
        latents: random(0, &latents),
        noise: random(1, &latents),
        sigma: Tensor::new(&[0.3f32, 0.7], &CPU).expect("tensor"),
        timestep: Tensor::new(&[300f32, 700.0], &CPU).expect("tensor"),
        text: TextEmbedding {
            context: random(2, &[2, text_tokens, config.joint_attention_dim]),
            pooled: random(3, &[2, config.pooled_projection_dim]),
            zeros: 0,
        },
        targets: vec![targets.clone(), targets],
    }
}

fn config(targets: &[&str]) -> RunConfig {
    let settings = ["output=\"o\"", "model.path=\"m\"", "data.source=[\"d\"]", "lora.rank=2", "model.expert_layers=1"];
    let mut config = RunConfig::parse("", Path::new("test"), &settings.map(String::from)).expect("config");
    config.lora.targets = targets.iter().map(|target| target.to_string()).collect();
    config
}

struct Run {
    model: Transformer,
    parameters: Parameters,
    config: RunConfig,
    inputs: StepInputs,
}

impl Run {
    fn step(&self, recomputed_blocks: usize) -> StepGradients {
        let plan = StepPlan { expert_layers: &self.config.model.expert_layers, recomputed_blocks };
        gradients(&self.model, &self.parameters, &self.config.loss, &self.inputs, plan).expect("gradients")
    }

    fn by_parameter(&self, found: &StepGradients) -> Vec<Option<Tensor>> {
        found.buffer.by_parameter(&self.parameters).expect("gradients")
    }

    fn loss(&self) -> f64 {
        f64::from(self.step(0).terms().expect("terms").total)
    }

    /// Moves all parameters by so many times these.
    fn move_by(&self, directions: &[Tensor], times: f64) {
        let values = self.parameters.tensors().expect("values");
        for (parameter, direction) in self.parameters.all.iter().zip(directions) {
            let moved = (direction * times).and_then(|step| &values[&parameter.name] + step).expect("values");
            parameter.set(&moved).expect("set");
        }
    }

    /// Each parameter's derivative in a random direction, beside the loss's difference along it.
    fn check_gradients(&self) {
        let found = self.by_parameter(&self.step(0));
        let zeros: Vec<Tensor> =
            self.parameters.all.iter().map(|parameter| parameter.values.zeros_like().expect("zeros")).collect();
        let product = |a: &Tensor, b: &Tensor| {
            let product = (a * b).and_then(|product| product.sum_all()?.to_scalar::<f32>());
            f64::from(product.expect("number"))
        };
        let mut checked = 0;
        for (index, (parameter, gradient)) in self.parameters.all.iter().zip(&found).enumerate() {
            let Some(gradient) = gradient else { panic!("no gradient of {}", parameter.name) };
            let random = normal(11, &[index as u64], parameter.values.shape(), &CPU).expect("numbers");
            let mut directions = zeros.clone();
            directions[index] = (&random / product(&random, &random).sqrt()).expect("numbers");
            const STEP: f64 = 2e-2;
            self.move_by(&directions, STEP);
            let above = self.loss();
            self.move_by(&directions, -2.0 * STEP);
            let below = self.loss();
            self.move_by(&directions, STEP);
            let (wanted, got) = ((above - below) / (2.0 * STEP), product(gradient, &directions[index]));
            let size = product(gradient, gradient).sqrt();
            // The loss is an f32: a difference of two is known to about 1e-7 of it, over twice the step 1e-5.
            assert!((wanted - got).abs() <= 2e-2 * size + 1e-4, "{}: {got}, {wanted} by differences", parameter.name);
            checked += 1;
        }
        assert!(checked > 0);
    }

    /// Takes steps down the gradient; the loss of each.
    fn descend(&self, steps: usize, rate: f64) -> Vec<f64> {
        let step = |_| {
            let found = self.step(0);
            let zero = |of: Option<Tensor>, like: &Tensor| of.map_or_else(|| like.zeros_like(), Ok).expect("zeros");
            let loss = f64::from(found.terms().expect("terms").total);
            let all = self.parameters.all.iter();
            let directions: Vec<Tensor> =
                self.by_parameter(&found).into_iter().zip(all).map(|(of, p)| zero(of, &p.values)).collect();
            self.move_by(&directions, -rate);
            loss
        };
        (0..steps).map(step).collect()
    }
}

fn bits(gradients: &[Option<Tensor>]) -> Vec<Vec<u32>> {
    let values = |gradient: &Option<Tensor>| -> TensorResult<Vec<u32>> {
        let Some(gradient) = gradient else { return Ok(vec![]) };
        Ok(gradient.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
    };
    gradients.iter().map(|gradient| values(gradient).expect("values")).collect()
}

#[test]
fn a_family_of_its_own_trains() {
    let mut model = toy();
    let config = config(&LAYERS);
    let parameters = Parameters::new(&config, &mut model, &CPU).expect("parameters");
    assert_eq!(parameters.adapters().expect("adapters").len(), 8);
    assert_eq!(parameters.all[0].name, "lora.layers.0.query.down");
    model.attach_trained(&parameters.trained().expect("adapters")).expect("attach");
    let inputs = inputs(&model.config, WORDS + 1);
    let run = Run { model, parameters, config, inputs };
    // Where B is zero A's gradient is, too.
    let losses = run.descend(30, 0.002);
    assert!(losses[29] < 0.9 * losses[0], "{losses:?}");
    run.check_gradients();
    assert_eq!(bits(&run.by_parameter(&run.step(0))), bits(&run.by_parameter(&run.step(2))), "recomputed blocks");
}

#[test]
fn a_family_of_its_own_is_looked_at_and_drawn_from() {
    let model = toy();
    let StepInputs { latents, timestep, text, .. } = inputs(&model.config, WORDS + 1);
    let embedded = model.embedding.embed(&latents, &timestep, &text).expect("embedding");
    for probe in model.probes(&embedded, &[0, 1]).expect("probes") {
        assert_eq!(probe.probability(HEADS).expect("maps").dims(), [2, 16, WORDS]);
    }
    let plain = model.forward(&latents, &timestep, &text, None, None).expect("velocity");
    assert_eq!(plain.dims(), latents.dims());
    let blurred =
        model.forward(&latents, &timestep, &text, Some(Blur { layer: 0, sigma: 1.0 }), None).expect("velocity");
    let difference =
        (plain - blurred).and_then(|d| d.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()).expect("number");
    assert!(difference > 1e-4, "{difference}");
}

#[test]
fn a_kind_of_adapter_of_its_own_trains_and_is_exported() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/train_step/sd3/transformer");
    let text = std::fs::read_to_string(folder.join("config.json")).expect("config");
    let sizes: MmDitConfig = serde_json::from_str(&text).expect("config");
    let weights = Weights::open_part(&folder, "diffusion_pytorch_model", DType::F32, &CPU).expect("weights");
    let mut model = sizes.transformer(None, &weights, DType::F32, &CPU).expect("model");
    let config = config(&["attn.to_q", "attn.add_k_proj"]);
    let parameters = Parameters::of_kind(Box::new(DiagonalSettings), &config, &mut model, &CPU).expect("parameters");
    assert_eq!(parameters.all[0].name, "diagonal.transformer_blocks.0.attn.to_q.diagonal");
    model.attach_trained(&parameters.trained().expect("adapters")).expect("attach");
    let inputs = inputs(&model.config, 80);
    let run = Run { model, parameters, config, inputs };
    run.check_gradients();
    let losses = run.descend(10, 0.05);
    assert!(losses[9] < losses[0], "{losses:?}");

    let trained = run.parameters.adapters().expect("adapters");
    let out = tempfile::tempdir().expect("folder");
    let file =
        export(&trained, Format::Diffusers, &out.path().join("d.safetensors"), &Origin::default()).expect("file");
    assert!(read_all(&file).expect("tensors").contains_key("transformer.transformer_blocks.0.attn.to_q.diagonal"));
    let back = read_kinds(&file, &[&DiagonalFiles]).expect("adapters");
    let diagonal =
        |adapter: &dyn Adapter| (adapter as &dyn Any).downcast_ref::<Diagonal>().expect("diagonal").0.to_vec1::<f32>();
    for (layer, adapter) in &trained {
        assert_eq!(diagonal(back[layer].as_ref()).expect("values"), diagonal(adapter.as_ref()).expect("values"));
    }
    // kohya has no name for it, and a layer of another shape no place.
    let refused = export(&trained, Format::Comfyui, &out.path().join("k.safetensors"), &Origin::default());
    assert!(refused.is_err());
    let other = Diagonal(Tensor::zeros(3, DType::F32, &CPU).expect("zeros"));
    let mut model = run.model;
    let wrong: Adapters = [("transformer_blocks.0.attn.to_q".to_string(), Box::new(other) as Box<dyn Adapter>)].into();
    let problem = model.attach(&wrong).expect_err("shape").to_string();
    assert!(problem.contains("transformer_blocks.0.attn.to_q") && problem.contains("a diagonal of 3"), "{problem}");
}
