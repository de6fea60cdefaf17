//! What a GPU can do at best through candle: the rate of a bf16 matrix product, and of copying memory.
//!
//!   cargo bench --features cuda --bench gpu_peak -- [--device cuda:0] [--shrink N]
//!
//! Prints one JSON line for each. A step's share of the peak is counted against these, not against a data sheet.
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use seg4diff::config::DeviceChoice;
use seg4diff::sample::noise::normal;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Parser)]
struct Args {
    #[arg(long, default_value = "cuda:0")]
    device: DeviceChoice,
    /// What all sizes are divided by, for an emulated GPU.
    #[arg(long, default_value_t = 1)]
    shrink: usize,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Products timed together, so that the host's waiting does not count.
const REPEATS: usize = 20;
const ROUNDS: usize = 7;

/// Median seconds of one `work`.
fn time(device: &Device, work: impl Fn() -> candle_core::Result<Tensor>) -> Result<f64> {
    let mut seconds = vec![];
    for _ in 0..=ROUNDS {
        let started = Instant::now();
        for _ in 0..REPEATS {
            work()?;
        }
        device.synchronize()?;
        seconds.push(started.elapsed().as_secs_f64() / REPEATS as f64);
    }
    // The first round warms up.
    let mut seconds = seconds.split_off(1);
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

fn main() -> Result<()> {
    let args = Args::parse();
    let device = args.device.open()?;
    // Random values: products of zeros run faster than they ever will in a step.
    for shape in [[4096, 4096, 4096], [8192, 8192, 8192], [16384, 1536, 1536], [16384, 1536, 6144]] {
        let [m, k, n] = shape.map(|side| side / args.shrink);
        let random = |stream, shape: [usize; 2]| -> Result<Tensor> {
            Ok(normal(4, &[stream], &shape, &device)?.to_dtype(DType::BF16)?)
        };
        let (a, b) = (random(0, [m, k])?, random(1, [k, n])?);
        let seconds = time(&device, || a.matmul(&b))?;
        let rate = 2.0 * (m * k * n) as f64 / seconds / 1e12;
        println!(
            "{}",
            serde_json::json!({"what": "seg4diff", "work": "matmul", "dtype": "bf16", "shape": [m, k, n], "tflop_per_s": rate})
        );
    }
    let bytes = (1 << 30) / args.shrink;
    let source = Tensor::zeros(bytes / 4, DType::F32, &device)?;
    let seconds = time(&device, || source.copy())?;
    let rate = 2.0 * bytes as f64 / seconds / 1e9;
    println!(
        "{}",
        serde_json::json!({"what": "seg4diff", "work": "copy", "bytes": bytes, "gb_per_s_read_and_written": rate})
    );
    Ok(())
}
