//! One training step on random weights, the twin of `../shared/bench/torch_step.py`: the same sizes, losses and work.
//!
//!   cargo bench --bench step -- --preset demo|sd3-width|sd3-medium [--device cpu|cuda:0] [--dtype f32|bf16] [--batch N]
//!                               [--steps N] [--masks N] [--checkpointing]
//!
//! Prints one JSON line with the keys of the PyTorch script. Peak memory is the process's on the CPU; on a GPU what
//! tensors had at a time, which is what PyTorch reports.
mod common;

use candle_core::{Device, Tensor};
use clap::Parser;
use common::{Preset, Result, preset, rounded, write_weights};
use rand::Rng;
use seg4diff::config::{Choice, DeviceChoice, RunConfig, WeightType};
use seg4diff::device::{peak_gpu_bytes, upload};
use seg4diff::loss::{MaskTarget, SampleTargets};
use seg4diff::model::mmdit::MmDit;
use seg4diff::model::text::TextEmbedding;
use seg4diff::model::weights::Weights;
use seg4diff::ops::Target;
use seg4diff::sample::noise::{generator, normal};
use seg4diff::train::gradients::{StepInputs, StepPlan, gradients};
use seg4diff::train::memory::{self, Needs, StepSize};
use seg4diff::train::optimizer::{AdamW, clip_factor, gradient_norm};
use seg4diff::train::parameters::Parameters;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

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

fn main() -> Result<()> {
    seg4diff::process::prepare().expect("threads");
    let args = Args::parse();
    let Preset { config: sizes, side, text_tokens, expert_layer } = preset(&args.preset)?;
    let device = args.device.open()?;
    let dtype = args.dtype.dtype();
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("model.safetensors");
    write_weights(&sizes, dtype, &file)?;
    let weights = Weights::open(&file, std::slice::from_ref(&file), dtype, &device)?;
    let mut model = MmDit::from_weights(sizes.clone(), None, &weights, dtype, &device)?;
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
    let recomputed_blocks = if args.checkpointing { sizes.num_layers } else { 0 };
    let plan = StepPlan { expert_layers: &[expert_layer], recomputed_blocks };
    let text = TextEmbedding::new(context, pooled)?;
    let prepare = |number: u64| -> Result<StepInputs> {
        let sigma: Vec<f32> = (0..batch).map(|b| generator(3, &[number, b as u64]).random()).collect();
        let timestep = Tensor::from_vec(sigma.iter().map(|sigma| 1000.0 * sigma).collect(), batch, &Device::Cpu)?;
        Ok(StepInputs {
            latents: latents.clone(),
            noise: draw(&[3, number], latents.dims())?,
            timestep,
            sigma: upload(sigma, batch, &device)?,
            text: text.clone(),
            targets: targets.clone(),
        })
    };
    let mut inputs = prepare(0)?;
    let mut step = |number: u64| -> Result<f64> {
        let started = Instant::now();
        let result = gradients(&model, &parameters, &config.loss, &inputs, plan)?;
        // As the trainer does: while a GPU is at work, what it will need next is made.
        inputs = prepare(number + 1)?;
        result.terms()?;
        let norm = gradient_norm(&result.of)?;
        let clip = clip_factor(norm, config.optim.clip_norm);
        optimizer.step(&parameters, &result.of, clip, config.optim.lr, &config.optim)?;
        device.synchronize()?;
        Ok(started.elapsed().as_secs_f64())
    };
    let size = StepSize {
        batch,
        image_tokens: grid * grid,
        text_tokens,
        value_bytes: if device.is_cpu() { 4 } else { dtype.size_in_bytes() },
        is_fused: true,
    };
    let needs = Needs {
        model: &sizes,
        size,
        trained: parameters.count(),
        experts: 1,
        score_head: memory::score_head(&device, batch * args.masks, (grid, grid)),
        encoding: 0,
        loader: 0,
    };
    let usage = memory::usage(&device);
    let estimate = needs.estimate(plan.recomputed_blocks, usage);
    eprintln!("{estimate}");
    let warm_up = if device.is_cuda() { 3 } else { 1 };
    for number in 0..warm_up {
        step(number)?;
    }
    let mut times = (0..args.steps as u64).map(|n| step(warm_up + n)).collect::<Result<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    println!(
        "{}",
        serde_json::json!({
            "what": "seg4diff", "preset": args.preset, "device": args.device.to_string(), "dtype": args.dtype,
            "batch": batch, "steps": args.steps, "masks": args.masks, "checkpointing": args.checkpointing,
            "step_ms": rounded(1e3 * median, 1), "step_ms_min": rounded(1e3 * times[0], 1),
            "images_per_s": rounded(batch as f64 / median, 3),
            "estimate_gb": rounded(estimate.peak() as f64 / 1e9, 2),
            "peak_gb": peak_gpu_bytes(&device).or_else(memory::peak_bytes).map(|b| rounded(b as f64 / 1e9, 2)),
        })
    );
    Ok(())
}
