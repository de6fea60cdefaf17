//! Quantised frozen weights: a whole training step is that of the dequantised weights; runs know the setting.
#[allow(dead_code)]
#[path = "../benches/common/mod.rs"]
mod common;
mod smoke_run;

use candle_core::{DType, Device, Tensor};
use common::{Preset, Sizes};
use rand::Rng;
use seg4diff::config::{Choice, Quantization, RunConfig};
use seg4diff::loss::{MaskTarget, SampleTargets};
use seg4diff::model::families::flux1::FluxConfig;
use seg4diff::model::families::flux2::Flux2Config;
use seg4diff::model::families::sd3::MmDitConfig;
use seg4diff::model::families::{JointInputs, Transformer};
use seg4diff::model::text::TextEmbedding;
use seg4diff::model::weights::{self, Weights, read_all};
use seg4diff::ops::{FrozenWeight, Target};
use seg4diff::sample::noise::{generator, normal};
use seg4diff::train::gradients::{LossTerms, StepInputs, StepPlan, gradients};
use seg4diff::train::parameters::Parameters;
use smoke_run::{Run, run, succeed};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

const FORMATS: [Quantization; 4] = [Quantization::Q8_0, Quantization::Q6K, Quantization::Q4K, Quantization::F8];
const BATCH: usize = 2;
const CPU: Device = Device::Cpu;

/// Small models, as wide as a block of 256.
fn presets() -> [(&'static str, Preset); 3] {
    let sd3 = MmDitConfig {
        patch_size: 2,
        in_channels: 16,
        out_channels: Some(16),
        num_layers: 3,
        attention_head_dim: 64,
        num_attention_heads: 4,
        joint_attention_dim: 96,
        caption_projection_dim: 256,
        pooled_projection_dim: 40,
        pos_embed_max_size: 8,
        dual_attention_layers: vec![],
        qk_norm: None,
    };
    let flux1 = FluxConfig {
        patch_size: 1,
        in_channels: 64,
        out_channels: None,
        num_layers: 1,
        num_single_layers: 2,
        attention_head_dim: 128,
        num_attention_heads: 2,
        joint_attention_dim: 96,
        pooled_projection_dim: 40,
        guidance_embeds: true,
        axes_dims_rope: [16, 56, 56],
    };
    let flux2 = Flux2Config {
        patch_size: 1,
        in_channels: 64,
        out_channels: None,
        num_layers: 1,
        num_single_layers: 3,
        attention_head_dim: 128,
        num_attention_heads: 2,
        joint_attention_dim: 96,
        timestep_guidance_channels: 256,
        mlp_ratio: 3.0,
        axes_dims_rope: [32; 4],
        rope_theta: 2000.0,
        eps: 1e-6,
        guidance_embeds: false,
        is_distilled: false,
    };
    let of = |sizes, text_tokens| Preset { sizes, side: 8, text_tokens, expert_layer: 1 };
    [("SD3", of(Sizes::Sd3(sd3), 80)), ("FLUX.1", of(Sizes::Flux1(flux1), 20)), ("FLUX.2", of(Sizes::Flux2(flux2), 20))]
}

/// The left half of a picture, or the right.
struct Half {
    side: usize,
    is_left: bool,
}

impl Target for Half {
    fn size(&self) -> (usize, usize) {
        (self.side, self.side)
    }

    fn row(&self, _: usize, out: &mut [f32]) {
        for (x, out) in out.iter_mut().enumerate() {
            *out = f32::from((x < self.side / 2) == self.is_left);
        }
    }
}

fn targets(side: usize, grid: usize) -> SampleTargets {
    let mask = |is_left| {
        let (pixels, small) = (Half { side, is_left }, Half { side: grid, is_left });
        let mut shrunk = vec![0f32; grid * grid];
        shrunk.chunks_exact_mut(grid).for_each(|row| small.row(0, row));
        MaskTarget { pixels: Arc::new(pixels), grid: shrunk, area: side * side / 2, class: None }
    };
    SampleTargets { masks: vec![mask(true), mask(false)], spans: vec![], words: None }
}

/// How a step is made.
#[derive(Clone, Copy)]
struct How {
    flow_weight: f64,
    recomputed_blocks: usize,
}

/// With both losses, and nothing recomputed.
const BOTH: How = How { flow_weight: 1.0, recomputed_blocks: 0 };

/// Puts adapters that do something on the model.
fn adapt(preset: &Preset, model: &mut Transformer, flow_weight: f64) -> (RunConfig, Parameters) {
    let settings = ["output=\"-\"", "model.path=\"-\"", "data.source=[\"-\"]", "data.captions=\"-\""].map(String::from);
    let fused = match preset.sizes {
        Sizes::Flux2(_) if flow_weight > 0.0 => ", \"attn.to_qkv_mlp_proj\", \"attn.to_out\"",
        // No attention before the expert's has the second.
        Sizes::Flux2(_) => ", \"attn.to_qkv_mlp_proj\"",
        _ => "",
    };
    let targets = format!("lora.targets=[\"attn.to_q\", \"attn.to_k\", \"attn.to_v\", \"attn.to_out.0\"{fused}]");
    let more =
        ["model.expert_layers=[1]".into(), "lora.rank=4".into(), targets, format!("loss.flow_weight={flow_weight}")];
    let settings = [&settings[..], &more].concat();
    let config = RunConfig::parse("", Path::new("test"), &settings).expect("settings");
    let parameters = Parameters::new(&config, model, &CPU).expect("parameters");
    for (number, parameter) in parameters.all.iter().enumerate().filter(|(_, p)| p.name.ends_with(".up")) {
        let values = normal(4, &[number as u64], parameter.values.dims(), &CPU).expect("values");
        parameter.set(&(values * 0.05).expect("scaled")).expect("set");
    }
    model.attach_trained(&parameters.trained().expect("adapters")).expect("attached");
    (config, parameters)
}

/// Loss terms, and the gradient of every parameter by name.
fn step(preset: &Preset, model: &mut Transformer, how: How) -> (LossTerms, Vec<(String, Vec<f32>)>) {
    let How { flow_weight, recomputed_blocks } = how;
    let (config, parameters) = adapt(preset, model, flow_weight);
    let sizes = preset.general();
    let draw = |stream: u64, shape: &[usize]| normal(2, &[stream], shape, &CPU).expect("noise");
    let sigma: Vec<f32> = (0..BATCH).map(|b| generator(3, &[b as u64]).random()).collect();
    let timestep = Tensor::from_vec(sigma.iter().map(|sigma| 1000.0 * sigma).collect(), BATCH, &CPU).expect("time");
    let (side, grid) = (preset.side, preset.side / sizes.patch_size);
    let context = draw(1, &[BATCH, preset.text_tokens, sizes.joint_attention_dim]);
    let inputs = StepInputs {
        latents: draw(0, &[BATCH, sizes.in_channels, side, side]),
        noise: draw(5, &[BATCH, sizes.in_channels, side, side]),
        timestep,
        sigma: Tensor::from_vec(sigma, BATCH, &CPU).expect("sigma"),
        text: TextEmbedding::new(context, draw(6, &[BATCH, sizes.pooled_projection_dim])).expect("text"),
        targets: (0..BATCH).map(|_| targets(8 * side, grid)).collect(),
    };
    let plan = StepPlan { expert_layers: &config.model.expert_layers, recomputed_blocks };
    let step = gradients(model, &parameters, &config.loss, &inputs, plan).expect("step");
    model.detach();
    let by_parameter = step.buffer.by_parameter(&parameters).expect("gradients");
    let names = parameters.all.iter().map(|parameter| parameter.name.clone());
    let found = names.zip(by_parameter).filter_map(|(name, gradient)| Some((name, values(&gradient?)))).collect();
    (step.terms().expect("terms"), found)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|tensor| tensor.to_vec1()).expect("values")
}

/// The files of a model with the weights of its blocks quantised and dequantised.
fn dequantised(files: &[PathBuf], format: Quantization, folder: &Path) -> Vec<PathBuf> {
    let dequantised = |file: &PathBuf| {
        let mut tensors = read_all(file).expect("tensors");
        for (name, tensor) in &mut tensors {
            if name.contains("transformer_blocks.") && tensor.dims().len() == 2 {
                let weight = FrozenWeight::quantize(tensor, format, DType::F32, &CPU).expect("quantised");
                assert!(weight.is_quantized(), "{name}");
                let written = weight.in_type(DType::F32).expect("dequantised");
                assert_ne!(values(&written), values(tensor), "{name}");
                *tensor = written;
            }
        }
        let file = folder.join(file.file_name().expect("name"));
        weights::write(&file, &tensors, &Default::default()).expect("written");
        file
    };
    files.iter().map(dequantised).collect()
}

#[test]
fn a_step_is_that_of_the_dequantised_weights() {
    for (family, preset) in presets() {
        let (folder, other) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
        let files = preset.write_weights(DType::F32, folder.path()).expect("weights");
        let open = |files: &[PathBuf]| Weights::open(folder.path(), files, DType::F32, &CPU).expect("weights");
        for format in FORMATS {
            let what = format!("{family} as {}", format.name());
            let load = |weights: Weights| preset.load(&weights, None, DType::F32).expect("model");
            let mut kept = load(open(&files).quantized(Some(format)));
            let mut dense = load(open(&dequantised(&files, format, other.path())));
            let (wanted_terms, wanted) = step(&preset, &mut dense, BOTH);
            assert!(wanted_terms.flow.is_some() && wanted_terms.focal.is_some() && wanted_terms.dice.is_some());
            assert!(wanted.iter().filter(|(name, _)| name.starts_with("lora.")).count() >= 20, "{what}");
            let (terms, got) = step(&preset, &mut kept, BOTH);
            assert_close(&(terms, &got), &(wanted_terms, &wanted), &what);
            // Recomputed, and on any number of threads, to the bit.
            let threads = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("threads");
            let recomputed = How { recomputed_blocks: 3, ..BOTH };
            let again = || step(&preset, &mut load(open(&files).quantized(Some(format))), recomputed);
            assert_eq!(threads.install(again), (terms, got), "{what}");
            // The mask loss alone needs no more of the expert than its queries and keys.
            let alone = How { flow_weight: 0.0, ..BOTH };
            let ((wanted_terms, wanted), (terms, got)) =
                (step(&preset, &mut dense, alone), step(&preset, &mut kept, alone));
            assert!(terms.flow.is_none() && !got.is_empty(), "{what}");
            assert_close(&(terms, &got), &(wanted_terms, &wanted), &what);
        }
    }
}

/// Loss terms and gradients that differ by 1e-5 at most.
fn assert_close(
    (terms, got): &(LossTerms, &Vec<(String, Vec<f32>)>),
    (wanted_terms, wanted): &(LossTerms, &Vec<(String, Vec<f32>)>),
    what: &str,
) {
    assert!((terms.total - wanted_terms.total).abs() <= 1e-5 * wanted_terms.total.abs(), "{what}");
    assert_eq!(got.len(), wanted.len());
    for ((name, got), (_, wanted)) in got.iter().zip(*wanted) {
        let largest = wanted.iter().fold(0f32, |most, value| most.max(value.abs()));
        let worst = got.iter().zip(wanted).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(largest > 0.0 && worst <= 1e-5 * largest, "{what}: {name} is off by {worst} of {largest}");
    }
}

/// A block's queries and keys alone: without adapters to the bit those that the whole block has.
#[test]
fn probes_are_those_of_whole_blocks() {
    for (family, preset) in presets() {
        let folder = tempfile::tempdir().expect("folder");
        let files = preset.write_weights(DType::F32, folder.path()).expect("weights");
        let sizes = preset.general();
        let draw = |stream: u64, shape: &[usize]| normal(2, &[stream], shape, &CPU).expect("noise");
        let latents = draw(0, &[BATCH, sizes.in_channels, preset.side, preset.side]);
        let context = draw(1, &[BATCH, preset.text_tokens, sizes.joint_attention_dim]);
        let text = TextEmbedding::new(context, draw(2, &[BATCH, sizes.pooled_projection_dim])).expect("text");
        let timestep = Tensor::new(&[700f32, 200.0], &CPU).expect("time");
        for format in [None].into_iter().chain(FORMATS.map(Some)) {
            let weights = Weights::open(folder.path(), &files, DType::F32, &CPU).expect("weights").quantized(format);
            let mut model = preset.load(&weights, None, DType::F32).expect("model");
            for is_adapted in [false, true] {
                if is_adapted {
                    adapt(&preset, &mut model, 1.0);
                }
                let embedded = model.embedding.embed(&latents, &timestep, &text).expect("embedded");
                let compare = |layer: usize, inputs: &JointInputs| {
                    let (whole, alone) = (inputs.probe()?, model.probes(&embedded, &[layer])?.remove(0));
                    for (whole, alone) in [(whole.queries, alone.queries), (whole.keys, alone.keys)] {
                        let (whole, alone) = (values(whole.tensor()), values(alone.tensor()));
                        let off = whole.iter().zip(&alone).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
                        let largest = whole.iter().fold(0f32, |most, value| most.max(value.abs()));
                        let what = format!("{family}, {format:?}, block {layer}, {is_adapted}: {off} of {largest}");
                        assert!(off <= if is_adapted { 1e-5 * largest } else { 0.0 }, "{what}");
                    }
                    Ok(())
                };
                model.inspect_each(&embedded, compare).expect("blocks");
            }
        }
    }
}

#[test]
fn blocks_take_the_bytes_of_the_format() {
    let (_, preset) = presets().into_iter().next().expect("SD3");
    let folder = tempfile::tempdir().expect("folder");
    let files = preset.write_weights(DType::F32, folder.path()).expect("weights");
    for (format, bits) in [(Quantization::Q8_0, 34 * 8), (Quantization::F8, 32 * 8), (Quantization::Q4K, 18 * 8)] {
        let weights = Weights::open(folder.path(), &files, DType::BF16, &CPU).expect("weights").quantized(Some(format));
        let mut model = preset.load(&weights, None, DType::BF16).expect("model");
        let (mut bytes, mut count, mut rows) = (0, 0, 0);
        for layer in model.adaptable() {
            let (inner, outer) = layer.projection.sizes();
            bytes += layer.projection.weight().bytes();
            (count, rows) = (count + inner * outer, rows + outer);
        }
        let scales = if format == Quantization::F8 { 4 * rows } else { 0 };
        assert_eq!(bytes, count * bits / 32 / 8 + scales, "{}", format.name());
        let dense = Weights::open(folder.path(), &files, DType::BF16, &CPU).expect("weights");
        let is_layer = |name: &str| name.starts_with("transformer_blocks.");
        assert_eq!(dense.bytes(is_layer) - weights.bytes(is_layer), (2 * count - bytes) as u64, "{}", format.name());
    }
}

#[test]
fn a_run_is_quantised_and_resumes_as_it_was() {
    let settings = ["model.quantize=\"q6k\"", "train.steps=2", "checkpoint.every=1", "data.resolution=64"];
    let quantized = Run::new(&settings);
    let checked = succeed_saying(&mut quantized.train(&["--check"]));
    assert!(checked.contains("frozen weights as q6k, the rest in f32: transformer 0.00 GB"), "{checked}");
    let said = quantized.finish(&[]);
    assert!(said.contains("frozen weights in F32, quantised as q6k"), "{said}");
    // The smoke model is 32 wide, one of its text encoders 24: said once for each of its files.
    let fallbacks = |format: &str| said.matches(&format!("no whole blocks of q6k; such are kept as {format}")).count();
    assert_eq!((fallbacks("q8_0"), fallbacks("f32")), (2, 1), "{said}");

    let dense = Run::new(&settings[1..]);
    dense.finish(&[]);
    let lora = |run: &Run| smoke_run::read(run.path("lora.safetensors"));
    assert_ne!(lora(&quantized), lora(&dense));

    for (setting, found) in [("model.quantize=\"f8\"", "\"q6k\" in the checkpoint, \"f8\" now"), ("train.steps=4", "")]
    {
        let mut command = quantized.train(&["--resume", "--set", setting]);
        let (output, said) = run(&mut command);
        assert_eq!(output.status.success(), found.is_empty(), "{said}");
        assert!(said.contains(found), "{said}");
    }
}

/// Runs a command that must succeed; returns what it wrote to stdout.
fn succeed_saying(command: &mut Command) -> String {
    let (output, said) = run(command);
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn pictures_are_drawn_by_quantised_weights() {
    let folder = tempfile::tempdir().expect("folder");
    let draw = |name: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
        command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["generate", "--device", "cpu", "--size", "64"]);
        command.args(["--model", "checkpoints/smoke-base", "--prompt", "cat", "--steps", "2", "--out"]);
        succeed(command.arg(folder.path().join(name)).args(more));
        smoke_run::read(folder.path().join(name).join("000000.png"))
    };
    let (dense, quantized) = (draw("dense", &[]), draw("quantized", &["--quantize", "q4_k"]));
    assert_ne!(dense, quantized);
    assert_eq!(quantized, draw("again", &["--quantize", "q4_k"]));
}
