//! A whole training step against torch autograd, diffusers and PEFT: output, attention, matching, loss terms, and the
//! gradient of every LoRA and score-head tensor by name. Fixtures: tests/fixtures/train_step/gen.py.
//!
//! Runs on the first CUDA device if this build and this machine have one, otherwise on the CPU.
use candle_core::{DType, Device, Tensor};
use seg4diff::config::RunConfig;
use seg4diff::loss::{MaskTarget, SampleTargets};
use seg4diff::model::families::flux1::FluxConfig;
use seg4diff::model::families::flux2::Flux2Config;
use seg4diff::model::families::sd3::MmDitConfig;
use seg4diff::model::families::{Family, Transformer, image_to_text_logits};
use seg4diff::model::text::TextEmbedding;
use seg4diff::model::text::tokenizer::CLIP_TOKENS;
use seg4diff::model::weights::{Weights, read_all};
use seg4diff::ops::Target;
use seg4diff::ops::device::open_cuda;
use seg4diff::train::gradients::{StepGradients, StepInputs, StepPlan, gradients};
use seg4diff::train::optimizers::{Optimizer, adamw::AdamW};
use seg4diff::train::parameters::Parameters;
use seg4diff::train::run_folder::{Resume, RunFolder};
use seg4diff::train::schedule::warmup_cosine;
use seg4diff::train::{self, Components};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

type Tensors = BTreeMap<String, Tensor>;

/// From the package's root, where cargo runs tests: the binary may have been built on another machine.
fn fixtures() -> PathBuf {
    PathBuf::from("tests/fixtures/train_step")
}

/// The first CUDA device, or the CPU; fails without the first where `REQUIRE_CUDA` is set.
fn device() -> Device {
    open_cuda(0).unwrap_or_else(|error| {
        assert!(std::env::var_os("REQUIRE_CUDA").is_none(), "REQUIRE_CUDA is set, and there is no GPU: {error}");
        Device::Cpu
    })
}

/// A file's tensors on the device under test.
fn placed(file: &Path) -> Tensors {
    let place = |(name, tensor): (String, Tensor)| (name, tensor.to_device(&device()).unwrap());
    read_all(file).unwrap().into_iter().map(place).collect()
}

fn json(file: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest difference over the largest value.
fn relative(got: &Tensor, wanted: &Tensor) -> f32 {
    assert_eq!(got.dims(), wanted.dims());
    let (got, wanted) = (values(got), values(wanted));
    let largest = wanted.iter().fold(0f32, |m, v| m.max(v.abs()));
    let worst = got.iter().zip(&wanted).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    if largest == 0.0 { worst } else { worst / largest }
}

struct Mask {
    size: (usize, usize),
    values: Vec<f32>,
}

impl Target for Mask {
    fn size(&self) -> (usize, usize) {
        self.size
    }

    fn row(&self, y: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.values[y * self.size.1..][..self.size.1]);
    }
}

/// torch's `interpolate(mode="nearest")`.
fn shrink(mask: &[f32], (height, width): (usize, usize), (rows, columns): (usize, usize)) -> Vec<f32> {
    let place = |i: usize| (i / columns * height / rows) * width + i % columns * width / columns;
    (0..rows * columns).map(|i| mask[place(i)]).collect()
}

/// One variant's model, inputs and cases.
struct Fixture {
    folder: PathBuf,
    cases: Value,
    inputs: Tensors,
}

/// A transformer of any family.
fn load(folder: &Path) -> Transformer {
    let config = json(&folder.join("config.json"));
    let weights = Weights::open_part(folder, "diffusion_pytorch_model", DType::F32, &device()).unwrap();
    if config["_class_name"] == "FluxTransformer2DModel" {
        let config: FluxConfig = serde_json::from_value(config).unwrap();
        return config.transformer(None, &weights, DType::F32, &device()).unwrap();
    }
    if config["_class_name"] == "Flux2Transformer2DModel" {
        let config: Flux2Config = serde_json::from_value(config).unwrap();
        return config.transformer(None, &weights, DType::F32, &device()).unwrap();
    }
    let config: MmDitConfig = serde_json::from_value(config).unwrap();
    config.transformer(None, &weights, DType::F32, &device()).unwrap()
}

impl Fixture {
    fn open(variant: &str) -> Self {
        let folder = fixtures().join(variant);
        let inputs = placed(&folder.join("inputs.safetensors"));
        let mut cases = json(&folder.join("cases.json"));
        let settings = json(&folder.join("settings.json"));
        for (name, case) in settings.as_object().unwrap() {
            assert!(cases["cases"].as_object_mut().unwrap().insert(name.clone(), case.clone()).is_none(), "{name}");
        }
        Self { cases, inputs, folder }
    }

    fn config(&self, case: &Value) -> RunConfig {
        let text = |key: &str| case[key].as_str().unwrap().to_string();
        // The cases of gen.py have the released recipes' settings.
        let given = |key: &str| Some(&case[key]).filter(|value| !value.is_null());
        let mut settings = vec![
            "output=\"unused\"".to_string(),
            "model.path=\"unused\"".to_string(),
            "data.source=[\"unused\"]".to_string(),
            format!("lora.rank={}", self.cases["rank"]),
            format!("lora.alpha={}", self.cases["alpha"]),
            format!("lora.targets={}", case["targets"]),
            format!("model.expert_layers={}", given("layers").unwrap_or(&self.cases["expert_layer"])),
            format!("loss.alignment=\"{}\"", text("alignment").replace("none", "sigmoid")),
            format!("loss.heads={}", case["heads"]),
            format!("loss.attention={}", given("attention").unwrap_or(&"logits".into())),
            format!("loss.score_head={}", given("score_head").unwrap_or(&true.into())),
            format!("loss.focal_probability=\"{}\"", text("focal_probability")),
            format!("loss.flow_weight={}", case["flow_weight"]),
            format!("model.learnable_prompt={}", given("learnable").unwrap_or(&false.into())),
        ];
        settings.extend(given("max_cost").map(|cost| format!("loss.match_max_cost={cost}")));
        let mut config = RunConfig::parse("", Path::new("test"), &settings).unwrap();
        if case["pairing"].as_str() == Some("none") {
            (config.loss.focal_weight, config.loss.dice_weight) = (0.0, 0.0);
        }
        config
    }

    fn model(&self) -> Transformer {
        load(&self.folder.join("transformer"))
    }

    /// The LoRA of the fixture and the score head, under the names of our parameters.
    fn trained(&self, config: &RunConfig, wide: bool) -> (Transformer, Parameters) {
        let mut model = self.model();
        let mut parameters = Parameters::new(config, &mut model, &device()).unwrap();
        if config.model.learnable_prompt {
            parameters.add_prompt(&self.first_text()).unwrap();
        }
        let mut tensors = match wide {
            true => read_all(&self.folder.join("lora_wide.safetensors")).unwrap(),
            false => self.inputs.clone(),
        };
        tensors.extend(read_all(&fixtures().join("score_head.safetensors")).unwrap());
        tensors.insert("prompt.tokens".into(), self.first_text().context.squeeze(0).unwrap());
        tensors.retain(|name, _| parameters.all.iter().any(|p| &p.name == name));
        parameters.load(&tensors).unwrap();
        model.attach_trained(&parameters.trained().unwrap()).unwrap();
        (model, parameters)
    }

    fn targets(&self, case: &Value) -> Vec<SampleTargets> {
        let pairing = case["pairing"].as_str().unwrap_or("none");
        let (with_masks, with_classes) = (pairing != "none", pairing == "classes");
        let spans = if case["spans"].is_null() { &self.cases["spans"] } else { &case["spans"] };
        let masks = &self.inputs["masks"];
        let (batch, _, height, width) = masks.dims4().unwrap();
        let counts = values(&self.inputs["mask_count"]);
        let (rows, columns) = self.grid();
        (0..batch)
            .map(|b| {
                let count = if with_masks { counts[b] as usize } else { 0 };
                let masks = (0..count)
                    .map(|m| {
                        let values = values(&masks.get(b).unwrap().get(m).unwrap());
                        MaskTarget {
                            grid: shrink(&values, (height, width), (rows, columns)),
                            area: values.iter().sum::<f32>() as usize,
                            class: with_classes.then_some(m),
                            pixels: Arc::new(Mask { size: (height, width), values }),
                        }
                    })
                    .collect();
                let spans = spans[b].as_array().filter(|_| with_classes);
                // A class whose name is not in the prompt has no tokens.
                let span = |tokens: &Value| {
                    let tokens: Vec<usize> = tokens.as_array()?.iter().map(|t| t.as_u64().unwrap() as usize).collect();
                    Some(tokens[0]..tokens[tokens.len() - 1] + 1)
                };
                let spans = spans.map(|s| s.iter().map(span).collect()).unwrap_or_default();
                let words = case["words"][b].as_array().map(|range| {
                    let ends: Vec<usize> = range.iter().map(|end| end.as_u64().unwrap() as usize).collect();
                    ends[0]..ends[1]
                });
                SampleTargets { masks, spans, words }
            })
            .collect()
    }

    fn grid(&self) -> (usize, usize) {
        let (_, _, h, w) = self.inputs["latents"].dims4().unwrap();
        // FLUX.2's latents are packed.
        if self.is_packed() { (h, w) } else { (h / 2, w / 2) }
    }

    fn is_packed(&self) -> bool {
        self.folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("flux2"))
    }

    /// Of no width where the family has no pooled text.
    fn pooled(&self) -> Tensor {
        let none = || Tensor::zeros((self.inputs["context"].dim(0).unwrap(), 0), DType::F32, &device()).unwrap();
        self.inputs.get("pooled").cloned().unwrap_or_else(none)
    }

    /// The first image's embedding.
    fn first_text(&self) -> TextEmbedding {
        let first = |tensor: &Tensor| tensor.narrow(0, 0, 1).unwrap();
        TextEmbedding { context: first(&self.inputs["context"]), pooled: first(&self.pooled()), zeros: 0 }
    }

    fn text(&self, case: &Value) -> TextEmbedding {
        let (mut context, mut pooled) = (self.inputs["context"].clone(), self.pooled());
        if case["zeros"].as_bool() == Some(true) {
            let clip = context.narrow(1, 0, CLIP_TOKENS).unwrap();
            context = clip.pad_with_zeros(1, 0, context.dim(1).unwrap() - CLIP_TOKENS).unwrap();
        }
        if case["learnable"].as_bool() == Some(true) {
            // All images get a learnt prompt, whose tokens are trained.
            pooled = self.first_text().pooled.broadcast_as(pooled.shape()).unwrap().contiguous().unwrap();
            context = context.zeros_like().unwrap();
        }
        TextEmbedding::new(context, pooled).unwrap()
    }

    fn step_inputs(&self, case: &Value) -> StepInputs {
        let get = |name: &str| self.inputs[name].clone();
        StepInputs {
            latents: get("latents"),
            noise: get("noise"),
            sigma: get("sigma"),
            timestep: get("timestep"),
            text: self.text(case),
            targets: self.targets(case),
        }
    }

    fn noised(&self) -> Tensor {
        let sigma = self.inputs["sigma"].reshape(((), 1, 1, 1)).unwrap();
        (self.inputs["latents"].broadcast_mul(&(1.0 - &sigma).unwrap()).unwrap()
            + self.inputs["noise"].broadcast_mul(&sigma).unwrap())
        .unwrap()
    }

    fn case_names(&self) -> Vec<String> {
        self.cases["cases"].as_object().unwrap().keys().cloned().collect()
    }
}

const VARIANTS: [&str; 7] =
    ["sd3", "sd3.5-medium", "sd3.5-large", "flux-dev", "flux-schnell", "flux2-klein", "flux2-small"];

#[test]
fn output_and_attention() {
    for variant in VARIANTS {
        let fixture = Fixture::open(variant);
        // Of FLUX also another block, of the other kind.
        for name in ["flow", "align"].into_iter().take(if variant.starts_with("flux") { 2 } else { 1 }) {
            one_output_and_attention(&fixture, name);
        }
    }
}

fn one_output_and_attention(fixture: &Fixture, name: &str) {
    let case = &fixture.cases["cases"][name];
    let (model, _) = fixture.trained(&fixture.config(case), false);
    let variant = format!("{} {name}", fixture.folder.display());
    let of_case = fixture.folder.join(format!("forward_{name}.safetensors"));
    let of_all = fixture.folder.join("expected_forward.safetensors");
    let expected = read_all(if of_case.exists() { &of_case } else { &of_all }).unwrap();
    let get = |name: &str| &fixture.inputs[name];
    let noised = fixture.noised();
    let v = model.forward(&noised, get("timestep"), &fixture.text(case), None, None).unwrap();
    assert!(relative(&v, &expected["v"]) < 1e-4, "{variant}: v is off by {}", relative(&v, &expected["v"]));

    let embedded = model.embedding.embed(&noised, get("timestep"), &fixture.text(case)).unwrap();
    let layer = case["layers"][0].as_u64().or(fixture.cases["expert_layer"].as_u64()).unwrap() as usize;
    let probe = model.probes(&embedded, &[layer]).unwrap().remove(0);
    let heads = model.config.num_attention_heads;
    let logits = image_to_text_logits(&probe, heads).unwrap().into_tensor().transpose(2, 3).unwrap();
    assert!(relative(&logits, &expected["logits"]) < 1e-4, "{variant}: logits");
    let probability = probe.probability(heads).unwrap();
    assert!(relative(probability.tensor(), &expected["probability"]) < 1e-4, "{variant}: probability");
}

fn run(fixture: &Fixture, case: &Value, wide: bool, recomputed_blocks: usize) -> (StepGradients, Parameters) {
    let config = fixture.config(case);
    let (model, parameters) = fixture.trained(&config, wide);
    let plan = StepPlan { expert_layers: &config.model.expert_layers, recomputed_blocks };
    let step = gradients(&model, &parameters, &config.loss, &fixture.step_inputs(case), plan).unwrap();
    (step, parameters)
}

#[test]
fn loss_terms_and_every_gradient() {
    let mut compared = 0;
    for variant in VARIANTS {
        let fixture = Fixture::open(variant);
        for name in fixture.case_names() {
            let case = &fixture.cases["cases"][&name];
            let wide = name == "wide";
            let expected = read_all(&fixture.folder.join(format!("expected_{name}.safetensors"))).unwrap();
            let (step, parameters) = run(&fixture, case, wide, 0);
            let terms = step.terms().unwrap();
            for (term, got) in [
                ("flow", terms.flow),
                ("focal", terms.focal),
                ("dice", terms.dice),
                ("align", terms.align),
                ("total", Some(terms.total)),
            ] {
                let wanted = expected.get(term).map_or(0.0, |t| values(t)[0]);
                // With a flow weight of 0 the flow loss is not computed.
                if term == "flow" && case["flow_weight"].as_f64() == Some(0.0) {
                    continue;
                }
                let got = got.unwrap_or(0.0);
                assert!((got - wanted).abs() <= 1e-4 * wanted.abs(), "{variant} {name}: {term} {got}, torch {wanted}");
            }
            let names: Vec<&String> = parameters.all.iter().map(|p| &p.name).collect();
            let by_parameter = step.buffer.by_parameter(&parameters).unwrap();
            let largest = expected
                .iter()
                .filter(|(key, _)| key.starts_with("grad.lora"))
                .map(|(_, grad)| values(grad).iter().fold(0f32, |m, v| m.max(v.abs())))
                .fold(0f32, f32::max);
            for (key, wanted) in &expected {
                let Some(key) = key.strip_prefix("grad.") else { continue };
                let got = names.iter().position(|name| *name == key).and_then(|i| by_parameter[i].clone());
                match got {
                    // A gradient that is zero by structure need not be computed.
                    None => {
                        assert!(values(wanted).iter().all(|v| v.abs() <= 1e-7 * largest), "{variant} {name}: {key}")
                    }
                    Some(got) => {
                        let off = relative(&got, wanted);
                        assert!(off < 1e-4, "{variant} {name}: gradient of {key} is off by {off}");
                    }
                }
                compared += 1;
            }
        }
    }
    assert!(compared > 300, "only {compared} gradients were compared");
}

#[test]
fn recomputing_blocks_changes_no_bit() {
    for variant in VARIANTS {
        let fixture = Fixture::open(variant);
        for name in fixture.case_names() {
            let case = &fixture.cases["cases"][&name];
            let wide = name == "wide";
            let (whole, _) = run(&fixture, case, wide, 0);
            for blocks in [1, 2, 99] {
                let (again, parameters) = run(&fixture, case, wide, blocks);
                assert_eq!(
                    whole.terms().unwrap(),
                    again.terms().unwrap(),
                    "{variant} {name}: {blocks} blocks recomputed"
                );
                let [whole, again] = [&whole, &again].map(|found| found.buffer.by_parameter(&parameters).unwrap());
                for ((a, b), parameter) in whole.iter().zip(&again).zip(&parameters.all) {
                    let (a, b) = (a.as_ref().map(values), b.as_ref().map(values));
                    assert!(a == b, "{variant} {name}: {} with {blocks} blocks recomputed", parameter.name);
                }
            }
        }
    }
}

#[test]
fn ten_optimizer_steps() {
    let fixture = Fixture::open("sd3");
    let record = json(&fixture.folder.join("ten_steps.json"));
    let tensors = placed(&fixture.folder.join("ten_steps.safetensors"));
    let case = &fixture.cases["cases"]["sa1b"];
    let mut config = fixture.config(case);
    let number = |key: &str| record["settings"][key].as_f64().unwrap();
    config.optim.lr = number("lr");
    config.optim.clip_norm = number("clip_norm");
    config.optim.warmup_steps = number("warmup_steps") as u64;
    config.optim.weight_decay = number("weight_decay");
    config.optim.lora_lr_scale = number("lora_lr_scale");
    config.optim.warmup_factor = number("warmup_factor");
    let (model, parameters) = fixture.trained(&config, false);
    let mut optimizer = AdamW::new(&config.optim, &parameters).unwrap();
    let steps = record["total"].as_array().unwrap().len();
    assert_eq!(steps, 10);
    for step in 0..steps {
        let mut inputs = fixture.step_inputs(case);
        inputs.noise = tensors["noise"].get(step).unwrap();
        inputs.sigma = tensors["sigma"].get(step).unwrap();
        inputs.timestep = (&inputs.sigma * 1000.0).unwrap();
        let plan = StepPlan { expert_layers: &config.model.expert_layers, recomputed_blocks: 0 };
        let result = gradients(&model, &parameters, &config.loss, &inputs, plan).unwrap();
        let mut found = result.buffer.clone();
        let norm = found.norm(&parameters).unwrap();
        let lr = warmup_cosine(&config.optim, step as u64, steps as u64);
        for (what, got, wanted) in [
            ("loss", f64::from(result.terms().unwrap().total), &record["total"][step]),
            ("gradient norm", norm, &record["grad_norm"][step]),
            ("learning rate", lr, &record["lr"][step]),
        ] {
            let wanted = wanted.as_f64().unwrap();
            assert!((got - wanted).abs() <= 1e-4 * wanted.abs(), "step {step}: {what} {got}, torch {wanted}");
        }
        found.clip(norm, config.optim.clip_norm).unwrap();
        optimizer.step(&parameters, &found, &|group| group.learning_rate(lr, &config.optim)).unwrap();
    }
    for parameter in &parameters.all {
        let wanted = &tensors[&format!("final.{}", parameter.name)];
        let off = relative(&parameter.values, wanted);
        assert!(off < 1e-4, "{} is off by {off} after ten steps", parameter.name);
    }
}

/// Loss and gradient norm of the steps of a whole run of configs/smoke.toml.
fn smoke_run(settings: &[String]) -> Vec<[f64; 2]> {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("run");
    let mut all = vec![format!("output={output:?}"), "train.steps=3".into(), "checkpoint.every=0".into()];
    all.extend_from_slice(settings);
    let config = RunConfig::load(Path::new("configs/smoke.toml"), &all).unwrap();
    let device = config.device.open().unwrap();
    let folder = RunFolder::open(&output, &Resume::No).unwrap();
    train::run(&config, &device, &folder, &[], &Components::default()).unwrap();
    let lines = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let step = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        ["loss", "grad_norm"].map(|key| line[key].as_f64().unwrap())
    };
    lines.lines().map(step).collect()
}

/// Whole runs, from the files to the optimizer, on the first CUDA device and on the CPU.
fn runs_are_alike(alignment: &str) {
    if device().is_cpu() {
        println!("runs with the {alignment} form: no CUDA device, not compared on one");
        return;
    }
    let form = format!("loss.alignment={alignment:?}");
    let wanted = smoke_run(&[form.clone(), "device=\"cpu\"".into()]);
    // bf16 rounds every activation to a relative 2⁻⁹.
    for (dtype, recomputed, tolerance) in [("f32", false, 1e-4), ("bf16", false, 2e-2), ("bf16", true, 2e-2)] {
        let found = smoke_run(&[
            form.clone(),
            "device=\"cuda:0\"".into(),
            format!("model.dtype={dtype:?}"),
            format!("train.gradient_checkpointing={recomputed}"),
        ]);
        assert_eq!(found.len(), 3);
        for (found, wanted) in found.iter().flatten().zip(wanted.iter().flatten()) {
            assert!((found - wanted).abs() <= tolerance * wanted, "{alignment}, {dtype}: {found}, on the CPU {wanted}");
        }
    }
}

#[test]
fn runs_with_the_sigmoid_form_are_alike_on_a_gpu() {
    runs_are_alike("sigmoid");
}

#[test]
fn runs_with_the_softmax_form_are_alike_on_a_gpu() {
    runs_are_alike("softmax");
}
