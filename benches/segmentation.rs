//! Open-vocabulary segmentation with random weights, the twin of `segmentation.py`: latents and text embeddings given,
//! the expert's attention to them, a map for each class, and the best class of every pixel.
//!
//!   cargo bench --bench segmentation -- --preset sd3-width [--batch N] [--rounds N] [--classes N]
//!
//! Prints one JSON line with the keys of the PyTorch script.
mod common;

use candle_core::{DType, Device, Tensor};
use clap::Parser;
use common::{Preset, Result, preset, rounded};
use seg4diff::eval::maps::MapSettings;
use seg4diff::eval::segmentation::{ClassMaps, Prompt};
use seg4diff::model::text::TextEmbedding;
use seg4diff::model::weights::Weights;
use seg4diff::sample::noise::normal;
use std::time::Instant;

#[derive(Parser)]
struct Args {
    #[arg(long, default_value = "sd3-width")]
    preset: String,
    #[arg(long, default_value_t = 1)]
    batch: usize,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Classes of an image, of two tokens each.
    #[arg(long, default_value_t = 8)]
    classes: usize,
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
    let (device, folder) = (Device::Cpu, tempfile::tempdir()?);
    let files = preset.write_weights(DType::F32, folder.path())?;
    let weights = Weights::open(folder.path(), &files, DType::F32, &device)?;
    let model = preset.load(&weights, Some(expert_layer + 1), DType::F32)?;
    let places = (0..args.classes).map(|class| (class as u16, 1 + 2 * class..3 + 2 * class)).collect();
    let prompt = Prompt { text: String::new(), places };
    let grid = (side / config.patch_size, side / config.patch_size);
    let latents = normal(2, &[0], (args.batch, config.in_channels, side, side), &device)?;
    let context = normal(2, &[1], (args.batch, text_tokens, config.joint_attention_dim), &device)?;
    let pooled = normal(2, &[2], (args.batch, config.pooled_projection_dim), &device)?;
    let text = TextEmbedding::new(context, pooled)?;
    let timestep = Tensor::full(500f32, args.batch, &Device::Cpu)?;
    let settings = MapSettings::of_layers(&[expert_layer]);
    let segment = || -> Result<f64> {
        let started = Instant::now();
        let embedded = model.embedding.embed(&latents, &timestep, &text)?;
        let probability =
            model.probes(&embedded, &[expert_layer])?.remove(0).probability(config.num_attention_heads)?;
        for of_image in probability.tensor().flatten_from(1)?.to_vec2::<f32>()? {
            let mut maps = ClassMaps::empty(grid);
            maps.add(&prompt, &of_image, &settings);
            std::hint::black_box(maps.predict(8 * side, 8 * side));
        }
        Ok(started.elapsed().as_secs_f64())
    };
    segment()?;
    let mut times = (0..args.rounds).map(|_| segment()).collect::<Result<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    println!(
        "{}",
        serde_json::json!({
            "what": "seg4diff", "preset": args.preset, "batch": args.batch, "rounds": args.rounds,
            "classes": args.classes, "batch_ms": rounded(1e3 * median, 1),
            "images_per_s": rounded(args.batch as f64 / median, 3),
            "peak_gb": seg4diff::system::memory::peak_bytes().map(|bytes| rounded(bytes as f64 / 1e9, 2)),
        })
    );
    Ok(())
}
