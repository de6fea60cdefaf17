//! What the parts of a training step take on the CPU, and their share of the peak: what the vector units multiply and add
//! from registers, on all threads.
//!
//!   cargo bench --bench parts -- [--preset demo|sd3-width] [--batch N]
//!
//! Prints one JSON line for the peak, one for a large product, and one for each part: calls in a step, milliseconds of a
//! call and its operations, forward and backward (the backward pass with candle's own nodes for the sum that it starts
//! from). Shares count operations as they are done: attention's backward pass forms the scores again, the score head is
//! counted as Winograd's filtering.
#[expect(dead_code, reason = "parts need no model")]
mod common;

use candle_core::{Device, Tensor};
use clap::Parser;
use common::{Preset, Result, Sizes, preset, rounded};
use seg4diff::autograd::{self, Variable};
use seg4diff::model::families::FamilyConfig;
use seg4diff::ops::{self, FrozenLayer, Precision};
use seg4diff::sample::noise::normal;
use std::hint::black_box;
use std::time::Instant;

#[derive(Parser)]
struct Args {
    #[arg(long, default_value = "demo")]
    preset: String,
    /// 4 for demo, 1 for sd3-width where it is not given.
    #[arg(long)]
    batch: Option<usize>,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

const ROUNDS: usize = 7;
const RANK: usize = 16;
const MASKS: usize = 16;

/// Operations of Winograd's F(4×4, 3×3) for one of a direct convolution.
const WINOGRAD: f64 = 36.0 / 144.0;

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Operations a second of one thread's multiplications and additions on registers, many at a time.
fn registers(rounds: usize) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the machine has the instructions.
        return unsafe { registers_avx512(rounds) };
    }
    let mut sums = [[1f32; 16]; 12];
    let started = Instant::now();
    for _ in 0..rounds {
        sums.iter_mut().flatten().for_each(|sum| *sum = sum.mul_add(0.999, 1e-3));
    }
    black_box(sums);
    (rounds * 12 * 16 * 2) as f64 / started.elapsed().as_secs_f64()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn registers_avx512(rounds: usize) -> f64 {
    use std::arch::x86_64::*;
    let (mut sums, factor) = ([_mm512_set1_ps(1.0); 12], _mm512_set1_ps(0.999));
    let started = Instant::now();
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, factor);
        }
    }
    black_box(sums);
    (rounds * 12 * 16 * 2) as f64 / started.elapsed().as_secs_f64()
}

/// The peak of all threads together.
fn peak() -> f64 {
    let rounds = || rayon::broadcast(|_| registers(10_000_000)).into_iter().sum();
    median((0..ROUNDS).map(|_| rounds()).collect())
}

type Work<'a> = Box<dyn Fn(&[Variable]) -> candle_core::Result<Variable> + 'a>;

/// One part of a step.
struct Part<'a> {
    name: &'static str,
    /// Calls in a step.
    count: usize,
    inputs: Vec<Tensor>,
    forward_flop: f64,
    /// None where it has no backward pass in a step.
    backward_flop: Option<f64>,
    work: Work<'a>,
}

impl Part<'_> {
    fn measure(&self, preset: &str, peak: f64) -> Result<()> {
        let (mut forward, mut backward) = (vec![], vec![]);
        for _ in 0..=ROUNDS {
            let inputs = self.inputs.iter().cloned();
            let leaves: Vec<Variable> = match self.backward_flop {
                Some(_) => inputs.map(Variable::leaf).collect(),
                None => inputs.map(Variable::constant).collect(),
            };
            let started = Instant::now();
            let out = (self.work)(&leaves)?;
            forward.push(started.elapsed().as_secs_f64());
            if self.backward_flop.is_some() {
                let grad = normal(9, &[0], out.dims(), &Device::Cpu)?;
                let started = Instant::now();
                autograd::backward([(out, grad)])?;
                backward.push(started.elapsed().as_secs_f64());
            }
        }
        // The first round warms up.
        let (forward, backward) =
            (median(forward.split_off(1)), self.backward_flop.map(|_| median(backward.split_off(1))));
        let share = |flop: f64, seconds: f64| rounded(flop / seconds / peak, 2);
        println!(
            "{}",
            serde_json::json!({
                "what": "part", "preset": preset, "part": self.name, "calls": self.count,
                "forward_ms": rounded(1e3 * forward, 2), "forward_gflop": rounded(self.forward_flop / 1e9, 3),
                "forward_share": share(self.forward_flop, forward),
                "backward_ms": backward.map(|seconds| rounded(1e3 * seconds, 2)),
                "backward_gflop": self.backward_flop.map(|flop| rounded(flop / 1e9, 3)),
                "backward_share": self.backward_flop.zip(backward).map(|(flop, seconds)| share(flop, seconds)),
            })
        );
        Ok(())
    }
}

fn main() -> Result<()> {
    seg4diff::system::process::prepare(1).expect("threads");
    let args = Args::parse();
    let Preset { sizes: Sizes::Sd3(config), side, text_tokens, .. } = preset(&args.preset)? else {
        return Err(format!("--preset {}: parts are those of SD3", args.preset).into());
    };
    let batch = args.batch.unwrap_or(if args.preset == "demo" { 4 } else { 1 });
    let (width, heads, layers) = (config.width(), config.num_attention_heads, config.num_layers);
    let grid = side / config.patch_size;
    let (image, tokens) = (grid * grid, grid * grid + text_tokens);
    let peak = peak();
    let threads = rayon::current_num_threads();
    println!("{}", serde_json::json!({"what": "peak", "threads": threads, "gflop_s": rounded(peak / 1e9, 1)}));

    let random = |stream: u64, shape: &[usize]| normal(5, &[stream], shape, &Device::Cpu);
    let layer = |stream: u64, inner: usize, outer: usize| -> Result<FrozenLayer> {
        let weight = (random(stream, &[outer, inner])? * (inner as f64).powf(-0.5))?;
        Ok(FrozenLayer { weight: weight.into(), bias: Some(random(stream + 1, &[outer])?) })
    };
    let flop = |rows: usize, inner: usize, outer: usize| 2.0 * (rows * inner * outer) as f64;
    let [square, up, down] = [layer(10, width, width)?, layer(12, width, 4 * width)?, layer(14, 4 * width, width)?];
    let modulation = [random(1, &[batch, width])?, random(2, &[batch, width])?, random(3, &[batch, width])?];
    let adapter = [random(4, &[RANK, width])?, (random(5, &[width, RANK])? * 0.1)?];
    let head: Vec<Tensor> = ops::PARAMETERS
        .iter()
        .enumerate()
        .map(|(i, (_, shape))| Ok((random(20 + i as u64, shape)? * 0.05)?))
        .collect::<Result<_>>()?;
    let constants: Vec<Variable> = head.iter().cloned().map(Variable::constant).collect();
    let maps = heads * text_tokens.min(77);
    let channels = ops::CHANNELS as f64;
    // Of the three layers the second is by Winograd's filtering.
    let of_pixel = 2.0 * 9.0 * (2.0 * channels + WINOGRAD * channels * channels);
    let of_pixel_direct = 2.0 * 9.0 * (2.0 * channels + channels * channels);
    let pixels = |maps: usize| (batch * maps * image) as f64;

    let attention = |name, count, queries: usize| -> Result<Part> {
        let scores = 2.0 * (batch * queries * tokens * width) as f64;
        Ok(Part {
            name,
            count,
            inputs: vec![
                random(30, &[batch, queries, width])?,
                random(31, &[batch, tokens, width])?,
                random(32, &[batch, tokens, width])?,
            ],
            forward_flop: 2.0 * scores,
            backward_flop: Some(5.0 * scores),
            work: Box::new(|x| ops::attention(&x[0], &x[1], &x[2], heads, 1)),
        })
    };
    let mlp = |name, count, tokens: usize| -> Result<Part> {
        let [shift, scale, gate] = &modulation;
        let (up, down) = (&up, &down);
        Ok(Part {
            name,
            count,
            inputs: vec![random(33, &[batch, tokens, width])?],
            forward_flop: 2.0 * flop(batch * tokens, width, 4 * width),
            backward_flop: Some(2.0 * flop(batch * tokens, width, 4 * width)),
            work: Box::new(move |x| {
                let modulation = ops::Modulation { shift, scale, gate };
                ops::feed_forward(&x[0], modulation, up.clone(), down.clone())
            }),
        })
    };
    let rows = batch * image;
    let low_rank = flop(rows, width, RANK);
    let parts = [
        attention("attention", layers - 1, tokens)?,
        attention("attention of the last block", 1, image)?,
        mlp("MLP of the image", layers, image)?,
        mlp("MLP of the text", layers - 1, text_tokens)?,
        Part {
            name: "projection with adapter",
            count: 4 * layers,
            inputs: vec![random(34, &[batch, image, width])?, adapter[0].clone(), adapter[1].clone()],
            forward_flop: flop(rows, width, width),
            backward_flop: Some(flop(rows, width, width) + 4.0 * low_rank),
            work: Box::new(|x| {
                let low_rank = ops::LowRank { down: x[1].clone(), up: x[2].clone(), scale: 1.0 };
                ops::linear(&x[0], ops::Layer { frozen: &square, low_rank: Some(&low_rank) })
            }),
        },
        Part {
            name: "projection of the text",
            count: 4 * layers - 2,
            inputs: vec![random(35, &[batch, text_tokens, width])?],
            forward_flop: flop(batch * text_tokens, width, width),
            backward_flop: Some(flop(batch * text_tokens, width, width)),
            work: Box::new(|x| ops::linear(&x[0], ops::Layer { frozen: &square, low_rank: None })),
        },
        Part {
            name: "score head over all maps",
            count: 1,
            inputs: vec![random(36, &[batch * maps, grid, grid])?],
            forward_flop: pixels(maps) * of_pixel,
            backward_flop: None,
            work: Box::new(|x| ops::score_head(&x[0], &constants, Precision::F32)),
        },
        Part {
            name: "score head over matched maps",
            count: 1,
            inputs: [vec![random(37, &[batch * MASKS, grid, grid])?], head.clone()].concat(),
            forward_flop: pixels(MASKS) * of_pixel,
            backward_flop: Some(pixels(MASKS) * (of_pixel + 2.0 * of_pixel_direct)),
            work: Box::new(|x| ops::score_head(&x[0], &x[1..], Precision::F32)),
        },
    ];
    for part in &parts {
        part.measure(&args.preset, peak)?;
    }
    Ok(())
}
