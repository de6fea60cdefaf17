//! Drawing with random weights, the twin of `generate.py`: text embeddings given, guidance, Euler steps, to latents.
//!
//!   cargo bench --bench generate -- --preset demo|sd3-width [--device cpu|cuda:0] [--batch N] [--steps N] [--rounds N]
//!
//! Prints one JSON line with the keys of the PyTorch script.
mod common;

use candle_core::DType;
use clap::Parser;
use common::{Preset, Result, preset, rounded};
use seg4diff::config::{BLUR, DeviceChoice};
use seg4diff::model::families::Blur;
use seg4diff::model::text::TextEmbedding;
use seg4diff::model::weights::Weights;
use seg4diff::sample::generate::{PerturbedGuidance, PromptEmbeddings, SamplingOptions};
use seg4diff::sample::noise::normal;
use seg4diff::sample::scheduler::Scheduler;
use std::time::Instant;

#[derive(Parser)]
struct Args {
    #[arg(long, default_value = "demo")]
    preset: String,
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    #[arg(long, default_value_t = 4)]
    batch: usize,
    #[arg(long, default_value_t = 8)]
    steps: usize,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// With guidance away from what blurred attention of the expert draws, for which PyTorch has no twin here.
    #[arg(long)]
    perturb: bool,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    seg4diff::system::process::prepare(1).expect("threads");
    let args = Args::parse();
    let preset = preset(&args.preset)?;
    let Preset { side, text_tokens, expert_layer, .. } = preset;
    let config = preset.general();
    let device = args.device.open()?;
    let folder = tempfile::tempdir()?;
    let files = preset.write_weights(DType::F32, folder.path())?;
    let model = preset.load(&Weights::open(folder.path(), &files, DType::F32, &device)?, None, DType::F32)?;
    let noise = normal(2, &[0], (args.batch, config.in_channels, side, side), &device)?;
    let text = |stream: u64| -> Result<TextEmbedding> {
        Ok(TextEmbedding::new(
            normal(2, &[stream, 0], (args.batch, text_tokens, config.joint_attention_dim), &device)?,
            normal(2, &[stream, 1], (args.batch, config.pooled_projection_dim), &device)?,
        )?)
    };
    let (positive, negative) = (text(1)?, text(2)?);
    let blur = Blur { layer: expert_layer, sigma: BLUR };
    let options = SamplingOptions {
        steps: args.steps,
        guidance: 7.0,
        perturbed: PerturbedGuidance::new(f64::from(args.perturb), blur),
        progress: false,
    };
    let scheduler = Scheduler::new(1000, 3.0);
    let draw = || -> Result<f64> {
        let started = Instant::now();
        let conditions = PromptEmbeddings { positive: &positive, negative: &negative };
        options.run(
            &scheduler,
            &noise,
            model.config.image_tokens((config.in_channels, side, side)),
            &conditions,
            |latents, timestep, text, blur| model.forward(latents, timestep, text, blur, None),
        )?;
        device.synchronize()?;
        Ok(started.elapsed().as_secs_f64())
    };
    draw()?;
    let mut times = (0..args.rounds).map(|_| draw()).collect::<Result<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    println!(
        "{}",
        serde_json::json!({
            "what": "seg4diff", "work": "generate", "preset": args.preset, "device": args.device.to_string(),
            "batch": args.batch, "steps": args.steps, "perturb": args.perturb, "rounds": args.rounds, "batch_ms": rounded(1e3 * median, 1),
            "images_per_s": rounded(args.batch as f64 / median, 3),
            "peak_gb": seg4diff::system::memory::peak_bytes().map(|bytes| rounded(bytes as f64 / 1e9, 2)),
        })
    );
    Ok(())
}
