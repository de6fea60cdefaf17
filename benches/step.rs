//! One training step on random weights, the twin of `../shared/bench/torch_step.py`: the same sizes, losses and work.
//!
//!   cargo bench --bench step -- --preset demo|sd3-width|sd3-medium [--device cpu|cuda:0] [--dtype f32|bf16] [--batch N]
//!                               [--steps N] [--masks N] [--checkpointing]
//!
//! Prints one JSON line with the keys of the PyTorch script. Peak memory is the process's on the CPU; on a GPU what
//! tensors had at a time, which is what PyTorch reports.
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use rand::Rng;
use rayon::prelude::*;
use seg4diff::config::{Choice, DeviceChoice, RunConfig, WeightType};
use seg4diff::device::peak_gpu_bytes;
use seg4diff::loss::{MaskTarget, SampleTargets};
use seg4diff::model::mmdit::{MmDit, MmDitConfig};
use seg4diff::model::weights::{self, Weights};
use seg4diff::ops::Target;
use seg4diff::sample::noise::{generator, normal};
use seg4diff::train::gradients::{StepInputs, StepPlan, gradients};
use seg4diff::train::optimizer::{AdamW, clip_factor, gradient_norm};
use seg4diff::train::parameters::Parameters;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Parser)]
struct Args {
    #[arg(long, default_value = "demo")]
    preset: String,
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    #[arg(long, default_value = "f32", value_parser = WeightType::from_name)]
    dtype: WeightType,
    #[arg(long, default_value_t = 4)]
    batch: usize,
    #[arg(long, default_value_t = 5)]
    steps: usize,
    #[arg(long, default_value_t = 16)]
    masks: usize,
    #[arg(long)]
    checkpointing: bool,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

struct Preset {
    config: MmDitConfig,
    /// Side of the latents.
    side: usize,
    text_tokens: usize,
    expert_layer: usize,
}

fn preset(name: &str) -> Result<Preset> {
    let (layers, heads, head_dim, side, patch, text_tokens, expert_layer, joint, pooled) = match name {
        "demo" => (8, 6, 32, 16, 1, 77, 4, 192, 192),
        "sd3-width" => (4, 24, 64, 64, 2, 154, 2, 4096, 2048),
        "sd3-medium" => (24, 24, 64, 128, 2, 154, 9, 4096, 2048),
        other => return Err(format!("no preset {other}: expected demo, sd3-width or sd3-medium").into()),
    };
    let config = MmDitConfig {
        patch_size: patch,
        in_channels: 16,
        out_channels: Some(16),
        num_layers: layers,
        attention_head_dim: head_dim,
        num_attention_heads: heads,
        joint_attention_dim: joint,
        caption_projection_dim: heads * head_dim,
        pooled_projection_dim: pooled,
        pos_embed_max_size: side.max(192),
        dual_attention_layers: vec![],
        qk_norm: None,
    };
    Ok(Preset { config, side, text_tokens, expert_layer })
}

/// Random weights of the model, scaled so that activations keep their size, as a file to open.
fn write_weights(config: &MmDitConfig, dtype: DType, file: &Path) -> Result<()> {
    let (width, patch) = (config.width(), config.patch_size);
    let mut shapes: Vec<(String, Vec<usize>)> = vec![];
    let mut linear = |name: String, inner: usize, outer: usize| {
        shapes.push((format!("{name}.weight"), vec![outer, inner]));
        shapes.push((format!("{name}.bias"), vec![outer]));
    };
    for (name, inner, outer) in [
        ("context_embedder", config.joint_attention_dim, width),
        ("time_text_embed.timestep_embedder.linear_1", 256, width),
        ("time_text_embed.timestep_embedder.linear_2", width, width),
        ("time_text_embed.text_embedder.linear_1", config.pooled_projection_dim, width),
        ("time_text_embed.text_embedder.linear_2", width, width),
        ("norm_out.linear", width, 2 * width),
        ("proj_out", width, patch * patch * config.out_channels()),
    ] {
        linear(name.to_string(), inner, outer);
    }
    for layer in 0..config.num_layers {
        let last = config.is_last(layer);
        let mut of_block = vec![
            ("norm1.linear", width, 6 * width),
            ("norm1_context.linear", width, if last { 2 * width } else { 6 * width }),
            ("ff.net.0.proj", width, 4 * width),
            ("ff.net.2", 4 * width, width),
        ];
        for name in ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"] {
            if name != "to_add_out" || !last {
                linear(format!("transformer_blocks.{layer}.attn.{name}"), width, width);
            }
        }
        if !last {
            of_block.extend([("ff_context.net.0.proj", width, 4 * width), ("ff_context.net.2", 4 * width, width)]);
        }
        for (name, inner, outer) in of_block {
            linear(format!("transformer_blocks.{layer}.{name}"), inner, outer);
        }
    }
    shapes.push(("pos_embed.proj.weight".into(), vec![width, config.in_channels, patch, patch]));
    shapes.push(("pos_embed.proj.bias".into(), vec![width]));
    shapes.push(("pos_embed.pos_embed".into(), vec![1, config.pos_embed_max_size.pow(2), width]));
    let random = |(number, (name, shape)): (usize, (String, Vec<usize>))| {
        let fan_in: usize = shape[1..].iter().product();
        let scale = if shape.len() == 1 { 0.1 } else { (fan_in as f64).powf(-0.5) };
        let tensor = (normal(0, &[number as u64], shape, &Device::Cpu)? * scale)?.to_dtype(dtype)?;
        seg4diff::error::Result::Ok((name, tensor))
    };
    // Two thousand million numbers for sd3-medium: on all threads.
    let tensors = shapes.into_par_iter().enumerate().map(random);
    let tensors = tensors.collect::<seg4diff::error::Result<BTreeMap<_, _>>>()?;
    weights::write(file, &tensors, &BTreeMap::new())?;
    Ok(())
}

/// A mask of 4×4 random squares.
struct Squares {
    side: usize,
    cells: [bool; 16],
}

impl Target for Squares {
    fn size(&self) -> (usize, usize) {
        (self.side, self.side)
    }

    fn row(&self, y: usize, out: &mut [f32]) {
        for (x, out) in out.iter_mut().enumerate() {
            *out = f32::from(self.cells[y * 4 / self.side * 4 + x * 4 / self.side]);
        }
    }
}

fn targets(count: usize, side: usize, grid: usize, stream: u64) -> SampleTargets {
    let mut random = generator(1, &[stream]);
    let masks = (0..count)
        .map(|_| {
            let squares = |side| Squares { side, cells: [false; 16] };
            let cells: [bool; 16] = std::array::from_fn(|_| random.random());
            let (pixels, small) = (Squares { cells, ..squares(side) }, Squares { cells, ..squares(grid) });
            let mut shrunk = vec![0f32; grid * grid];
            shrunk.chunks_exact_mut(grid).enumerate().for_each(|(y, row)| small.row(y, row));
            let area = cells.iter().filter(|c| **c).count() * side * side / 16;
            MaskTarget { pixels: Arc::new(pixels), grid: shrunk, area, class: None }
        })
        .collect();
    SampleTargets { masks, spans: vec![] }
}

/// Peak resident memory of this process in bytes.
fn peak_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn main() -> Result<()> {
    let args = Args::parse();
    let Preset { config: sizes, side, text_tokens, expert_layer } = preset(&args.preset)?;
    let device = args.device.open()?;
    let dtype = args.dtype.dtype();
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("model.safetensors");
    write_weights(&sizes, dtype, &file)?;
    let weights = Weights::open(&file, std::slice::from_ref(&file), dtype, &device)?;
    let mut model = MmDit::from_weights(sizes.clone(), &weights, dtype, &device)?;
    drop(weights);

    let settings = ["output=\"-\"", "model.path=\"-\"", "data.source=[\"-\"]", "data.captions=\"-\""];
    let mut settings: Vec<String> = settings.map(String::from).to_vec();
    settings.push(format!("model.expert_layer={expert_layer}"));
    let config = RunConfig::parse("", Path::new("bench"), &settings)?;
    let parameters = Parameters::new(&config, &mut model, &device)?;
    model.attach(&parameters.adapter())?;
    let mut optimizer = AdamW::new(&parameters);

    let batch = args.batch;
    let grid = side / sizes.patch_size;
    let draw = |stream: &[u64], shape: &[usize]| normal(2, stream, shape, &device);
    let latents = draw(&[0], &[batch, 16, side, side])?;
    let context = draw(&[1], &[batch, text_tokens, sizes.joint_attention_dim])?;
    let pooled = draw(&[2], &[batch, sizes.pooled_projection_dim])?;
    let targets: Vec<SampleTargets> = (0..batch).map(|b| targets(args.masks, 8 * side, grid, b as u64)).collect();
    let plan = StepPlan { expert_layer, recomputed_blocks: if args.checkpointing { sizes.num_layers } else { 0 } };
    let mut step = |number: u64| -> Result<f64> {
        let started = Instant::now();
        let sigma: Vec<f32> = (0..batch).map(|b| generator(3, &[number, b as u64]).random()).collect();
        let sigma = Tensor::from_vec(sigma, batch, &device)?;
        let inputs = StepInputs {
            latents: latents.clone(),
            noise: draw(&[3, number], latents.dims())?,
            timestep: (&sigma * 1000.0)?,
            sigma,
            context: context.clone(),
            pooled: pooled.clone(),
            targets: targets.clone(),
        };
        let result = gradients(&model, &parameters, &config.loss, &inputs, plan)?;
        let norm = gradient_norm(&result.of)?;
        let clip = clip_factor(norm, config.optim.clip_norm);
        optimizer.step(&parameters, &result.of, clip, config.optim.lr, &config.optim)?;
        device.synchronize()?;
        Ok(started.elapsed().as_secs_f64())
    };
    let warm_up = if device.is_cuda() { 3 } else { 1 };
    for number in 0..warm_up {
        step(number)?;
    }
    let mut times = (0..args.steps as u64).map(|n| step(warm_up + n)).collect::<Result<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let rounded = |value: f64, digits: i32| (value * 10f64.powi(digits)).round() / 10f64.powi(digits);
    println!(
        "{}",
        serde_json::json!({
            "what": "seg4diff", "preset": args.preset, "device": args.device.to_string(), "dtype": args.dtype,
            "batch": batch, "steps": args.steps, "masks": args.masks, "checkpointing": args.checkpointing,
            "step_ms": rounded(1e3 * median, 1), "step_ms_min": rounded(1e3 * times[0], 1),
            "images_per_s": rounded(batch as f64 / median, 3),
            "peak_gb": peak_gpu_bytes(&device).or_else(peak_bytes).map(|bytes| rounded(bytes as f64 / 1e9, 2)),
        })
    );
    Ok(())
}
