//! The kernels of attention by themselves: forward, the gradient of the queries, the gradients of keys and values, in
//! bf16 with 64 values a head. PyTorch's half: `benches/attention.py`.
//!
//!   cargo bench --features cuda --bench attention -- [--sizes 4x24x4250,1x24x1178] [--rounds N]
//!
//! Sizes are batch, heads and tokens. What a kernel writes is first compared with what the library's attention gives; then
//! the GPU's own events time it. Prints a JSON line for the rate of a large matrix product and one for each kernel: its share
//! of that rate, by the operations that it does. `backward` is all that a backward pass runs, by the operations that it
//! needs: five products, which is what PyTorch's are counted by.
use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use half::bf16;
use seg4diff::autograd::{Variable, backward};
use seg4diff::config::DeviceChoice;
use seg4diff::ops;
use seg4diff::sample::noise::normal;
use serde_json::json;
use std::sync::Arc;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/attention.fatbin"));
const HEAD_DIM: usize = 64;
/// As in `src/ops/attention/attention.cuh`: warps of a block, and rows that a warp has of queries and of keys.
const WARPS: usize = 4;
const QUERIES: usize = 32;
const KEYS: usize = 16;
/// Largest difference from the library's results, as a share of the largest value: as in the tests of the kernels.
const TOLERANCE: f32 = 1e-2;

#[derive(Parser)]
struct Args {
    #[arg(long, default_value = "cuda:0")]
    device: DeviceChoice,
    /// Batch, heads and tokens of each size.
    #[arg(long, default_value = "4x24x4250,1x24x1178", value_delimiter = ',')]
    sizes: Vec<Sizes>,
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Launches between two events.
    #[arg(long, default_value_t = 10)]
    repeats: usize,
    /// Rows and columns of the matrix product that sets the peak.
    #[arg(long, default_value_t = 8192)]
    peak_side: usize,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    heads: usize,
    tokens: usize,
}

impl std::str::FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let numbers = text.split('x').map(str::parse).collect::<std::result::Result<Vec<usize>, _>>();
        match numbers.as_deref() {
            Ok([batch, heads, tokens]) => Ok(Self { batch: *batch, heads: *heads, tokens: *tokens }),
            _ => Err(format!("{text}: expected BATCHxHEADSxTOKENS")),
        }
    }
}

impl Sizes {
    fn shape(self) -> [usize; 3] {
        [self.batch, self.tokens, self.heads * HEAD_DIM]
    }

    /// Operations of `products` matrix products as large as that of the scores.
    fn operations(self, products: usize) -> f64 {
        (2 * products * self.batch * self.heads * HEAD_DIM) as f64 * (self.tokens as f64).powi(2)
    }
}

/// What one kernel does.
#[derive(Clone, Copy)]
enum Part {
    Forward,
    Delta,
    BackwardQueries,
    BackwardKeys,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Delta => "delta",
            Self::BackwardQueries => "backward_queries",
            Self::BackwardKeys => "backward_keys",
        }
    }

    /// Rows that a warp has.
    fn rows(self) -> usize {
        match self {
            Self::Forward | Self::BackwardQueries => QUERIES,
            Self::Delta => 1,
            Self::BackwardKeys => KEYS,
        }
    }

    /// Matrix products as large as that of the scores.
    fn products(self) -> usize {
        match self {
            Self::Forward => 2,
            Self::Delta => 0,
            Self::BackwardQueries => 3,
            Self::BackwardKeys => 4,
        }
    }
}

/// Tensors of one size on the GPU, as the kernels take them.
struct Case {
    sizes: Sizes,
    stream: Arc<CudaStream>,
    q: CudaSlice<bf16>,
    k: CudaSlice<bf16>,
    v: CudaSlice<bf16>,
    /// The gradient of `out`.
    grad: CudaSlice<bf16>,
    lse: CudaSlice<f32>,
    delta: CudaSlice<f32>,
    out: Output,
    dq: Output,
    dk: Output,
    dv: Output,
}

/// What a kernel writes, and what the library makes of the same.
struct Output {
    slice: CudaSlice<bf16>,
    wanted: Vec<bf16>,
}

impl Output {
    fn new(wanted: &Tensor, stream: &Arc<CudaStream>) -> Result<Self> {
        let wanted = host(wanted)?;
        Ok(Self { slice: stream.clone_htod(&wanted)?, wanted })
    }

    fn forget(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        Ok(stream.memcpy_htod(&vec![bf16::NAN; self.wanted.len()], &mut self.slice)?)
    }

    fn check(&self, kernel: &str, stream: &Arc<CudaStream>) -> Result<()> {
        let largest = self.wanted.iter().fold(0f32, |most, v| most.max(v.to_f32().abs()));
        for (got, wanted) in stream.clone_dtoh(&self.slice)?.iter().zip(&self.wanted) {
            let off = (got.to_f32() - wanted.to_f32()).abs();
            if off.is_nan() || off > TOLERANCE * largest {
                return Err(format!("{kernel} wrote {got}, the library's attention {wanted}, of {largest}").into());
            }
        }
        Ok(())
    }
}

fn host(tensor: &Tensor) -> Result<Vec<bf16>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

impl Case {
    fn new(sizes: Sizes, device: &Device) -> Result<Self> {
        let random = |stream| -> Result<Tensor> {
            Ok(normal(5, &[stream], &sizes.shape(), &Device::Cpu)?.to_dtype(DType::BF16)?)
        };
        let inputs = [random(0)?, random(1)?, random(2)?, random(3)?];
        let [q, k, v, grad] = inputs.each_ref().map(|t| t.to_device(device));
        let leaves = [q?, k?, v?].map(Variable::leaf);
        let out = ops::attention(&leaves[0], &leaves[1], &leaves[2], sizes.heads, 1)?;
        backward([(out.clone(), grad?)])?;
        let stream = device.as_cuda_device()?.cuda_stream();
        let of_leaf =
            |leaf: &Variable| Output::new(&leaf.take_gradient().ok_or("attention gave no gradient")?, &stream);
        let [dq, dk, dv] = leaves.each_ref().map(of_leaf);
        let [q, k, v, grad] = inputs.each_ref().map(|t| -> Result<_> { Ok(stream.clone_htod(&host(t)?)?) });
        let of_queries = || stream.alloc_zeros::<f32>(sizes.batch * sizes.heads * sizes.tokens);
        Ok(Self {
            sizes,
            q: q?,
            k: k?,
            v: v?,
            grad: grad?,
            lse: of_queries()?,
            delta: of_queries()?,
            out: Output::new(out.tensor(), &stream)?,
            dq: dq?,
            dk: dk?,
            dv: dv?,
            stream,
        })
    }

    /// The tensors that a kernel takes, in its order.
    fn tensors(&self, part: Part) -> Vec<u64> {
        let half = |slice: &CudaSlice<bf16>| slice.device_ptr(&self.stream).0;
        let full = |slice: &CudaSlice<f32>| slice.device_ptr(&self.stream).0;
        let mut all = match part {
            Part::Delta => return vec![half(&self.out.slice), half(&self.grad), full(&self.delta)],
            _ => vec![half(&self.q), half(&self.k), half(&self.v)],
        };
        match part {
            Part::Forward => all.extend([half(&self.out.slice), full(&self.lse)]),
            _ => all.extend([half(&self.grad), full(&self.lse), full(&self.delta)]),
        }
        match part {
            Part::BackwardQueries => all.push(half(&self.dq.slice)),
            Part::BackwardKeys => all.extend([half(&self.dk.slice), half(&self.dv.slice)]),
            _ => (),
        }
        all
    }

    fn launch(&self, part: Part, kernel: &CudaFunction) -> Result<()> {
        let Sizes { batch, heads, tokens } = self.sizes;
        let tensors = self.tensors(part);
        let (count, all_heads) = (i32::try_from(tokens)?, i32::try_from(heads)?);
        // Scores are in units of log 2; the last key counts once, which is 0 in them.
        let (scale, bias) = (std::f32::consts::LOG2_E / (HEAD_DIM as f32).sqrt(), 0f32);
        let mut builder = self.stream.launch_builder(kernel);
        for address in &tensors {
            builder.arg(address);
        }
        builder.arg(&count).arg(&count).arg(&all_heads).arg(&scale).arg(&bias);
        let blocks = u32::try_from(tokens.div_ceil(WARPS * part.rows()))?;
        let grid_dim = (blocks, u32::try_from(heads)?, u32::try_from(batch)?);
        let config = LaunchConfig { grid_dim, block_dim: (32 * WARPS as u32, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the tensors are of the sizes that follow them, and the grid has each of their rows once.
        unsafe { builder.launch(config) }?;
        Ok(())
    }

    fn outputs(&mut self, part: Part) -> Vec<&mut Output> {
        match part {
            Part::Forward => vec![&mut self.out],
            Part::Delta => vec![],
            Part::BackwardQueries => vec![&mut self.dq],
            Part::BackwardKeys => vec![&mut self.dk, &mut self.dv],
        }
    }

    /// Launches a kernel, and compares all that it wrote with what the library has.
    fn check(&mut self, part: Part, name: &str, kernel: &CudaFunction) -> Result<()> {
        let stream = self.stream.clone();
        self.outputs(part).into_iter().try_for_each(|output| output.forget(&stream))?;
        self.launch(part, kernel)?;
        self.outputs(part).into_iter().try_for_each(|output| output.check(name, &stream))
    }
}

/// Median and least milliseconds of `work`, by the GPU's events.
fn time(args: &Args, stream: &CudaStream, work: impl Fn() -> Result<()>) -> Result<(f64, f64)> {
    let event = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
    let mut times = vec![];
    // The first round warms up.
    for _ in 0..=args.rounds {
        let begin = event()?;
        for _ in 0..args.repeats {
            work()?;
        }
        times.push(f64::from(begin.elapsed_ms(&event()?)?) / args.repeats as f64);
    }
    let mut times = times[1..].to_vec();
    times.sort_by(f64::total_cmp);
    let middle = times.get(times.len() / 2).copied().ok_or("--rounds 0: nothing to time")?;
    Ok((middle, times[0]))
}

/// The rate of a large product of random numbers, in TFLOP/s.
fn peak(args: &Args, device: &Device) -> Result<f64> {
    let side = args.peak_side;
    let random = |stream| -> Result<Tensor> { Ok(normal(4, &[stream], &[side, side], device)?.to_dtype(DType::BF16)?) };
    let (a, b) = (random(0)?, random(1)?);
    let stream = device.as_cuda_device()?.cuda_stream();
    let product = || -> Result<()> { Ok(a.matmul(&b).map(drop)?) };
    let (median, _) = time(args, &stream, product)?;
    let rate = 2.0 * (side as f64).powi(3) / median / 1e9;
    println!(
        "{}",
        json!({"what": "seg4diff", "work": "matmul", "dtype": "bf16", "side": side, "ms": median,
               "tflop_per_s": rate})
    );
    Ok(rate)
}

fn report(sizes: Sizes, kernel: &str, (median, least): (f64, f64), products: usize, peak: f64) {
    let rate = sizes.operations(products) / median / 1e9;
    println!(
        "{}",
        json!({
            "what": "seg4diff", "work": "attention", "kernel": kernel, "batch": sizes.batch, "heads": sizes.heads,
            "tokens": sizes.tokens, "head_dim": HEAD_DIM, "dtype": "bf16", "ms": median,
            "ms_min": least, "tflop_per_s": rate, "share_of_matmul": rate / peak,
        })
    );
}

fn kernel(module: &Arc<CudaModule>, part: Part) -> Result<(String, CudaFunction)> {
    let name = format!("{}_bf16_{HEAD_DIM}", part.name());
    let kernel = module.load_function(&name).map_err(|error| format!("{name}: {error}"))?;
    Ok((name, kernel))
}

fn main() -> Result<()> {
    let args = Args::parse();
    let device = args.device.open()?;
    let stream = device.as_cuda_device()?.cuda_stream();
    let module = stream.context().load_module(Ptx::from_binary(IMAGE.to_vec()))?;
    let peak = peak(&args, &device)?;
    for sizes in &args.sizes {
        let mut case = Case::new(*sizes, &device)?;
        for part in [Part::Forward, Part::Delta, Part::BackwardQueries, Part::BackwardKeys] {
            let (name, kernel) = kernel(&module, part)?;
            case.check(part, &name, &kernel)?;
            let times = time(&args, &stream, || case.launch(part, &kernel))?;
            report(*sizes, &name, times, part.products(), peak);
        }
        let parts = [Part::Delta, Part::BackwardQueries, Part::BackwardKeys];
        let all = parts.map(|part| Ok((part, kernel(&module, part)?.1)));
        let all = all.into_iter().collect::<Result<Vec<_>>>()?;
        let backward = || all.iter().try_for_each(|(part, kernel)| case.launch(*part, kernel));
        report(*sizes, "backward", time(&args, &stream, backward)?, 5, peak);
    }
    Ok(())
}
