//! One training step on random weights, the twin of `../shared/bench/torch_step.py` and, of FLUX.1, of `flux_step.py`: the
//! same sizes, losses and work.
//!
//!   cargo bench --bench step -- --preset demo|sd3-width|sd3-medium|flux-width|flux-dev|klein-width
//!                               [--device cpu|cuda:0] [--dtype f32|bf16] [--quantize q8_0|q6k|q4_k|f8] [--batch N]
//!                               [--steps N] [--masks N] [--checkpointing] [--variant plain --variant masks=0,batch=1 …]
//!
//! Prints one JSON line with the keys of the PyTorch script. Each `--variant` is measured in turn on one model, with what
//! it names in the place of what the other flags say. A step that does not fit into memory is a line, too; then half the
//! batch is tried. Peak memory is the process's so far on the CPU; on a GPU what tensors had at a time while the variant
//! ran, which is what PyTorch reports.
mod common;

use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::{Preset, Result, Sizes, preset, rounded};
use rand::Rng;
use seg4diff::config::{Choice, DeviceChoice, Quantization, RunConfig, WeightType};
use seg4diff::loss::{MaskTarget, SampleTargets};
use seg4diff::model::families::Transformer;
use seg4diff::model::text::TextEmbedding;
use seg4diff::model::weights::Weights;
use seg4diff::ops::Target;
use seg4diff::ops::device::{forget_gpu_peak, peak_gpu_bytes, take_epilogues, upload};
use seg4diff::sample::noise::{generator, normal};
use seg4diff::system::memory::peak_bytes;
use seg4diff::train::gradients::{StepInputs, StepPlan, gradients};
use seg4diff::train::memory::{self, Needs, StepSize, Usage};
use seg4diff::train::optimizers::{Optimizer, adamw::AdamW};
use seg4diff::train::parameters::Parameters;
use serde_json::json;
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
    /// How the frozen weights of blocks are kept.
    #[arg(long, value_parser = Quantization::from_name)]
    quantize: Option<Quantization>,
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Steps before those that are timed; by default 3 on a GPU, which loads its kernels then, and 1 on the CPU.
    #[arg(long)]
    warm_up: Option<usize>,
    #[command(flatten)]
    work: Work,
    /// What differs from the other flags: `plain`, or of `batch=N`, `masks=N`, `checkpointing`, `epilogue=0`, some with commas.
    #[arg(long = "variant", value_name = "CHANGES")]
    variants: Vec<String>,
    /// On a GPU, one more step of each variant between cuProfilerStart and cuProfilerStop.
    #[arg(long)]
    profile: bool,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What one step has to do.
#[derive(clap::Args, Clone, Copy)]
struct Work {
    #[arg(long, default_value_t = 4)]
    batch: usize,
    #[arg(long, default_value_t = 16)]
    masks: usize,
    #[arg(long)]
    checkpointing: bool,
    /// Whether a GPU's products take bias and GELU along, or leave them to kernels of their own.
    #[arg(skip = true)]
    epilogue: bool,
}

impl Work {
    /// With what a `--variant` changes.
    fn changed(mut self, variant: &str) -> Result<Self> {
        for change in variant.split(',').filter(|change| *change != "plain") {
            match change.split_once('=') {
                None if change == "checkpointing" => self.checkpointing = true,
                Some(("batch", number)) => self.batch = number.parse()?,
                Some(("masks", number)) => self.masks = number.parse()?,
                Some(("epilogue", "0")) => self.epilogue = false,
                _ => {
                    return Err(format!(
                        "--variant {variant}: no {change}; there are plain, batch=N, masks=N, checkpointing, epilogue=0"
                    )
                    .into());
                }
            }
        }
        Ok(self)
    }
}

impl Args {
    fn all_work(&self) -> Result<Vec<Work>> {
        if self.variants.is_empty() {
            return Ok(vec![self.work]);
        }
        self.variants.iter().map(|variant| self.work.changed(variant)).collect()
    }
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
    SampleTargets { masks, spans: vec![], words: None }
}

/// A model with its adapters, for one variant after the other.
struct Trainer<'a> {
    args: &'a Args,
    preset: Preset,
    device: Device,
    dtype: DType,
    config: RunConfig,
    model: Transformer,
    parameters: Parameters,
    /// Bytes of the largest weight that is written out.
    layer: u64,
}

impl<'a> Trainer<'a> {
    fn new(args: &'a Args) -> Result<Self> {
        let preset = preset(&args.preset)?;
        let device = args.device.open()?;
        let dtype = args.dtype.dtype();
        let folder = tempfile::tempdir()?;
        let files = preset.write_weights(dtype, folder.path())?;
        let weights = Weights::open(folder.path(), &files, dtype, &device)?.quantized(args.quantize);
        let mut model = preset.load(&weights, None, dtype)?;

        let settings = ["output=\"-\"", "model.path=\"-\"", "data.source=[\"-\"]", "data.captions=\"-\""];
        let mut settings: Vec<String> = settings.map(String::from).to_vec();
        settings.push(format!("model.expert_layer={}", preset.expert_layer));
        let config = RunConfig::parse("", Path::new("bench"), &settings)?;
        let parameters = Parameters::new(&config, &mut model, &device)?;
        model.attach_trained(&parameters.trained()?)?;
        let layer = model.largest_written_out(if device.is_cpu() { DType::F32 } else { dtype });
        Ok(Self { args, preset, device, dtype, config, model, parameters, layer })
    }

    /// What has been measured, as the fields of a line.
    fn measure(&self, work: Work) -> Result<serde_json::Value> {
        let Self { args, preset, device, config, model, parameters, layer, .. } = self;
        let sizes = preset.general();
        let Work { batch, masks, checkpointing, epilogue } = work;
        take_epilogues(epilogue);
        let (side, grid) = (preset.side, preset.side / sizes.patch_size);
        forget_gpu_peak(device)?;
        let mut optimizer = AdamW::new(&config.optim, parameters)?;
        let draw = |stream: &[u64], shape: &[usize]| normal(2, stream, shape, device);
        let latents = draw(&[0], &[batch, sizes.in_channels, side, side])?;
        let context = draw(&[1], &[batch, preset.text_tokens, sizes.joint_attention_dim])?;
        let pooled = draw(&[2], &[batch, sizes.pooled_projection_dim])?;
        let pixels = if matches!(preset.sizes, Sizes::Flux2(_)) { 16 * side } else { 8 * side };
        let targets: Vec<SampleTargets> = (0..batch).map(|b| targets(masks, pixels, grid, b as u64)).collect();
        let recomputed_blocks = if checkpointing { sizes.num_layers() } else { 0 };
        let plan = StepPlan { expert_layers: &[preset.expert_layer], recomputed_blocks };
        let text = TextEmbedding::new(context, pooled)?;
        let prepare = |number: u64| -> Result<StepInputs> {
            let sigma: Vec<f32> = (0..batch).map(|b| generator(3, &[number, b as u64]).random()).collect();
            let timestep = Tensor::from_vec(sigma.iter().map(|sigma| 1000.0 * sigma).collect(), batch, &Device::Cpu)?;
            Ok(StepInputs {
                latents: latents.clone(),
                noise: draw(&[3, number], latents.dims())?,
                timestep,
                sigma: upload(sigma, batch, device)?,
                text: text.clone(),
                targets: targets.clone(),
            })
        };
        let mut inputs = prepare(0)?;
        let mut step = |number: usize| -> Result<f64> {
            let started = Instant::now();
            let result = gradients(model, parameters, &config.loss, &inputs, plan)?;
            // As the trainer does: while a GPU is at work, what it will need next is made.
            inputs = prepare(number as u64 + 1)?;
            result.terms()?;
            let mut found = result.buffer;
            found.clip(found.norm(parameters)?, config.optim.clip_norm)?;
            optimizer.step(parameters, &found, &|group| group.learning_rate(config.optim.lr, &config.optim))?;
            device.synchronize()?;
            Ok(started.elapsed().as_secs_f64())
        };
        let size = StepSize {
            batch,
            image_tokens: grid * grid,
            text_tokens: preset.text_tokens,
            width: sizes.width(),
            value_bytes: if device.is_cpu() { 4 } else { self.dtype.size_in_bytes() },
        };
        let score_head = memory::score_head(device, batch * masks, (grid, grid));
        let needs = Needs {
            blocks: model.saved_activations(),
            size,
            trained: parameters.count(),
            layer: *layer,
            experts: 1,
            score_head,
            encoding: 0,
            loader: 0,
        };
        // Of a GPU's memory what tensors have, as the peak is measured.
        let usage = match peak_gpu_bytes(device) {
            Some(now) => Usage { now, most: now, ..Usage::default() },
            None => Usage::of(device),
        };
        let estimate = needs.estimate(plan.recomputed_blocks, usage);
        eprintln!("{estimate}");
        let warm_up = args.warm_up.unwrap_or(if device.is_cuda() { 3 } else { 1 });
        for number in 0..warm_up {
            step(number)?;
        }
        let mut times = (0..args.steps).map(|n| step(warm_up + n)).collect::<Result<Vec<f64>>>()?;
        if args.profile {
            profiled(|| step(warm_up + args.steps))?;
        }
        times.sort_by(f64::total_cmp);
        let (Some(least), Some(median)) = (times.first(), times.get(times.len() / 2)) else {
            return Err("--steps 0: nothing to time".into());
        };
        Ok(json!({
            "step_ms": rounded(1e3 * median, 1), "step_ms_min": rounded(1e3 * least, 1),
            "images_per_s": rounded(batch as f64 / median, 3),
            "estimate_gb": rounded(estimate.peak() as f64 / 1e9, 2),
            "peak_gb": peak_gpu_bytes(device).or_else(peak_bytes).map(|b| rounded(b as f64 / 1e9, 2)),
        }))
    }

    /// Prints the line of one variant, or that it does not fit, and then that of half its batch.
    fn report(&self, mut work: Work) -> Result<()> {
        loop {
            let (found, fits) = match self.measure(work) {
                Ok(found) => (found, true),
                Err(error) if is_out_of_memory(error.as_ref()) => (json!({"out_of_memory": true}), false),
                Err(error) => return Err(error),
            };
            let mut line = json!({
                "what": "seg4diff", "preset": self.args.preset, "device": self.args.device.to_string(),
                "dtype": self.args.dtype, "quantize": self.args.quantize, "batch": work.batch, "steps": self.args.steps, "masks": work.masks,
                "checkpointing": work.checkpointing, "epilogue": work.epilogue,
            });
            if let (Some(line), serde_json::Value::Object(found)) = (line.as_object_mut(), found) {
                line.extend(found);
            }
            println!("{line}");
            if fits || work.batch < 2 {
                return Ok(());
            }
            work.batch /= 2;
        }
    }
}

/// Whether a GPU's memory was too small, as the driver and cuBLAS say it.
fn is_out_of_memory(error: &dyn std::error::Error) -> bool {
    let text = format!("{error:?}");
    ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"].iter().any(|name| text.contains(name))
}

/// Does `work` while a profiler that waits for it (`ncu --profile-from-start off`) looks on.
#[cfg(feature = "cuda")]
fn profiled<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let _profiler = candle_core::cuda_backend::cudarc::driver::Profiler::new()?;
    work()
}

#[cfg(not(feature = "cuda"))]
fn profiled<T>(_: impl FnOnce() -> Result<T>) -> Result<T> {
    Err("--profile needs a GPU: build with --features cuda".into())
}

fn main() -> Result<()> {
    seg4diff::system::process::prepare(1).expect("threads");
    let args = Args::parse();
    let all_work = args.all_work()?;
    let trainer = Trainer::new(&args)?;
    all_work.into_iter().try_for_each(|work| trainer.report(work))
}
