//! The loader alone: photographs a second and peak memory, on SA-1B shards.
//!
//! `cargo bench --bench loader -- SHARDS CAPTIONS [RESOLUTION] [WORKERS]`; `loader.py` does the same with Pillow and
//! pycocotools.
use seg4diff::config::RunConfig;
use seg4diff::data::Loader;
use std::path::Path;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [source, captions, rest @ ..] = arguments.as_slice() else {
        println!("usage: loader SHARDS CAPTIONS [RESOLUTION] [WORKERS]");
        return Ok(());
    };
    let number = |index: usize, default: usize| rest.get(index).map_or(Ok(default), |text| text.parse());
    let (resolution, workers) = (number(0, 1024)?, number(1, 2)?);
    let text = format!(
        "output = \"out\"\n[model]\npath = \"model\"\n[data]\nsource = [{source:?}]\ncaptions = {captions:?}\n\
         caption_key_column = \"image\"\nresolution = {resolution}\ncrop = \"center\"\nworkers = {workers}\n\
         max_broken = 0.0\nretry_seconds = 0\n"
    );
    let config = RunConfig::parse(&text, Path::new("bench"), &[])?;
    let mut loader = Loader::new(&config.data, 0, None, true)?;
    loader.next_batch(4)?;
    let (started, mut images, mut waited, mut masks) = (Instant::now(), 0, Duration::ZERO, 0);
    while started.elapsed() < Duration::from_secs(15) {
        let batch = loader.next_batch(4)?;
        images += batch.samples.len();
        masks += batch.samples.iter().map(|sample| sample.masks.len()).sum::<usize>();
        waited += batch.waited;
    }
    let seconds = started.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM unknown");
    println!(
        "{:.1} images/s at {resolution} pixels, {workers} workers, {:.1} masks an image, waited {:.1} of {seconds:.1} s, {peak}",
        images as f64 / seconds,
        masks as f64 / images as f64,
        waited.as_secs_f64()
    );
    Ok(())
}
