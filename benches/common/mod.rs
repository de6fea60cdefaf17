//! Models with random weights, of the sizes of `../shared/bench/torch_step.py`.
use candle_core::{DType, Device};
use rayon::prelude::*;
use seg4diff::model::families::sd3::MmDitConfig;
use seg4diff::model::weights;
use seg4diff::sample::noise::normal;
use std::collections::BTreeMap;
use std::path::Path;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

pub struct Preset {
    pub config: MmDitConfig,
    /// Side of the latents.
    pub side: usize,
    pub text_tokens: usize,
    pub expert_layer: usize,
}

pub fn preset(name: &str) -> Result<Preset> {
    let (layers, heads, head_dim, side, patch, text_tokens, expert_layer, joint, pooled) = match name {
        "demo" => (8, 6, 32, 16, 1, 77, 4, 192, 192),
        "sd3-width" => (4, 24, 64, 64, 2, 154, 2, 4096, 2048),
        "sd3-medium" => (24, 24, 64, 128, 2, 154, 9, 4096, 2048),
        // For an emulated GPU, which takes seconds for it; PyTorch's twin has none.
        "tiny" => (2, 1, 32, 4, 1, 77, 1, 64, 64),
        other => return Err(format!("no preset {other}: expected demo, sd3-width, sd3-medium or tiny").into()),
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
pub fn write_weights(config: &MmDitConfig, dtype: DType, file: &Path) -> Result<()> {
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
        seg4diff::system::error::Result::Ok((name, tensor))
    };
    // Two thousand million numbers for sd3-medium: on all threads.
    let tensors = shapes.into_par_iter().enumerate().map(random);
    let tensors = tensors.collect::<seg4diff::system::error::Result<BTreeMap<_, _>>>()?;
    weights::write(file, &tensors, &BTreeMap::new())?;
    Ok(())
}

/// To so many digits after the point.
pub fn rounded(value: f64, digits: i32) -> f64 {
    (value * 10f64.powi(digits)).round() / 10f64.powi(digits)
}
