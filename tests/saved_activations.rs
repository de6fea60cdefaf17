//! What blocks say that they save for the backward pass, against the bytes that a forward pass leaves allocated.
//!
//! A test binary of its own, since its allocator counts for the whole process.
use candle_core::{DType, Device, Tensor};
use seg4diff::autograd::Variable;
use seg4diff::config::RunConfig;
use seg4diff::model::families::flux1::FluxConfig;
use seg4diff::model::families::flux2::Flux2Config;
use seg4diff::model::families::sd3::MmDitConfig;
use seg4diff::model::families::{Conditioning, Family, SavedActivations, Streams, Transformer};
use seg4diff::model::weights::Weights;
use seg4diff::sample::noise::normal;
use seg4diff::train::parameters::Parameters;
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicIsize, Ordering};

const BATCH: usize = 2;
const IMAGE_TOKENS: usize = 512;
const TEXT_TOKENS: usize = 256;
/// Bytes of the nodes, and of tensors that do not grow with the tokens.
const SMALL: usize = 40 << 10;

/// Counts the bytes in use.
struct Counting;

static IN_USE: AtomicIsize = AtomicIsize::new(0);

// SAFETY: all is the system's allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: what the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: what the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn model(name: &str) -> Transformer {
    let folder = Path::new("tests/fixtures/train_step").join(name).join("transformer");
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let weights = Weights::open_part(&folder, "diffusion_pytorch_model", DType::F32, &Device::Cpu).unwrap();
    if name.starts_with("flux2") {
        let config: Flux2Config = serde_json::from_str(&text).unwrap();
        return config.transformer(None, &weights, DType::F32, &Device::Cpu).unwrap();
    }
    if name.starts_with("flux") {
        let config: FluxConfig = serde_json::from_str(&text).unwrap();
        return config.transformer(None, &weights, DType::F32, &Device::Cpu).unwrap();
    }
    let config: MmDitConfig = serde_json::from_str(&text).unwrap();
    config.transformer(None, &weights, DType::F32, &Device::Cpu).unwrap()
}

/// Bytes that a forward pass of block `layer` leaves in use, with its streams and without.
fn left_in_use(model: &Transformer, layer: usize) -> isize {
    let width = model.config.width();
    let stream = |number, tokens| Variable::leaf(normal(0, &[number], &[BATCH, tokens, width], &Device::Cpu).unwrap());
    let ones = Tensor::ones((BATCH, width), DType::F32, &Device::Cpu).unwrap();
    // As many parts as a modulation that blocks share may have.
    let conditioning = Conditioning { shared: vec![vec![ones.clone(); 6]; 3], ..Conditioning::of(ones) };
    let before = IN_USE.load(Ordering::Relaxed);
    let streams = Streams { image: stream(1, IMAGE_TOKENS), text: stream(2, TEXT_TOKENS), last_text_count: 1 };
    let (output, inputs) = model.blocks[layer].forward(&streams, &conditioning).unwrap();
    drop((inputs, streams));
    let all = IN_USE.load(Ordering::Relaxed) - before;
    let of_output = |variable: &Variable| (variable.tensor().elem_count() * size_of::<f32>()) as isize;
    // The last block's text is its input.
    let has_text = model.config.block_lists.len() > 1 || layer + 1 < model.config.num_layers();
    all - of_output(&output.image) - if has_text { of_output(&output.text) } else { 0 }
}

#[test]
fn a_block_saves_what_it_says() {
    let settings = ["output=\"-\"", "model.path=\"-\"", "data.source=[\"-\"]", "data.captions=\"-\""];
    for (name, targets) in [
        ("sd3", "attn.to_q,attn.to_k,attn.to_v,attn.to_out.0"),
        ("sd3.5-large", "attn.to_q,attn.to_k,attn.to_v,attn.to_out.0"),
        ("sd3.5-medium", "attn.to_q,attn.to_k,attn.to_v,attn.to_out.0"),
        ("sd3.5-medium", "attn2.to_v"),
        ("sd3", "ff.net.0.proj,ff_context.net.2"),
        ("sd3", "ff.net.2,attn.add_k_proj"),
        ("sd3.5-medium", "norm1.linear"),
        ("sd3.5-medium", "norm1_context.linear,attn.to_add_out"),
        ("flux-dev", "attn.to_q,attn.to_k,attn.to_v,attn.to_out.0"),
        ("flux-schnell", "norm1.linear,norm.linear"),
        ("flux-dev", "proj_out,ff.net.2"),
        ("flux-dev", "proj_mlp,norm1_context.linear"),
        ("flux2-klein", "attn.to_q,attn.to_k,attn.to_v,attn.to_out.0,attn.to_qkv_mlp_proj,attn.to_out"),
        ("flux2-small", "ff.linear_in,ff_context.linear_out,attn.to_out"),
        ("flux2-klein", "attn.add_k_proj,ff.linear_out,attn.to_qkv_mlp_proj"),
    ] {
        let mut model = model(name);
        let targets = format!("lora.targets={:?}", targets.split(',').collect::<Vec<_>>());
        let mut settings: Vec<String> = settings.map(String::from).to_vec();
        settings.extend([targets.clone(), "lora.rank=1".into(), "model.expert_layers=0".into()]);
        let config = RunConfig::parse("", Path::new("test"), &settings).unwrap();
        let parameters = Parameters::new(&config, &mut model, &Device::Cpu).unwrap();
        model.attach_trained(&parameters.trained().unwrap()).unwrap();
        for (layer, SavedActivations { image, text }) in model.saved_activations().into_iter().enumerate() {
            left_in_use(&model, layer);
            let vector = BATCH * model.config.width() * size_of::<f32>();
            let left = left_in_use(&model, layer) as f64 / vector as f64;
            let expected = (image * IMAGE_TOKENS + text * TEXT_TOKENS) as f64;
            // Beside: the log-sum-exp of each head's attention, one value of a head's features.
            let lse = (2 * (IMAGE_TOKENS + TEXT_TOKENS) * model.config.num_attention_heads) as f64;
            let most = expected + lse / model.config.width() as f64 + (SMALL / vector) as f64;
            let found = left / (IMAGE_TOKENS + TEXT_TOKENS) as f64;
            assert!(
                expected <= left && left <= most,
                "{name}, {targets}, block {layer}: {left} vectors, {found:.2} a token; expected {expected} to {most}"
            );
        }
    }
}
