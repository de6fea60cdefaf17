//! Models with random weights, of the sizes of `../shared/bench/torch_step.py` and `flux_step.py`.
use candle_core::{DType, Device};
use rayon::prelude::*;
use seg4diff::model::families::flux1::FluxConfig;
use seg4diff::model::families::flux2::Flux2Config;
use seg4diff::model::families::sd3::MmDitConfig;
use seg4diff::model::families::{Family, FamilyConfig, Transformer, TransformerConfig};
use seg4diff::model::weights::{self, Weights};
use seg4diff::sample::noise::normal;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A model, and the work for it.
pub struct Preset {
    pub sizes: Sizes,
    /// Side of the latents.
    pub side: usize,
    pub text_tokens: usize,
    pub expert_layer: usize,
}

/// A family's sizes.
pub enum Sizes {
    Sd3(MmDitConfig),
    Flux1(FluxConfig),
    Flux2(Flux2Config),
}

/// Tensors of a file.
const TENSORS: usize = 8;

/// Tensors by name, each with its shape.
type Shapes = Vec<(String, Vec<usize>)>;

pub fn preset(name: &str) -> Result<Preset> {
    if let "flux-width" | "flux-dev" = name {
        // 512 pixels; the real width, and for `flux-dev` the real depth and 1024 pixels.
        let (double, single, side, expert_layer) = if name == "flux-dev" { (19, 38, 128, 12) } else { (2, 2, 64, 1) };
        let config = FluxConfig {
            patch_size: 1,
            in_channels: 64,
            out_channels: None,
            num_layers: double,
            num_single_layers: single,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 4096,
            pooled_projection_dim: 768,
            guidance_embeds: true,
            axes_dims_rope: [16, 56, 56],
        };
        return Ok(Preset { sizes: Sizes::Flux1(config), side, text_tokens: 512, expert_layer });
    }
    if name == "klein-width" {
        // 512 pixels; the real width.
        let config = Flux2Config {
            patch_size: 1,
            in_channels: 128,
            out_channels: None,
            num_layers: 2,
            num_single_layers: 2,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 7680,
            timestep_guidance_channels: 256,
            mlp_ratio: 3.0,
            axes_dims_rope: [32; 4],
            rope_theta: 2000.0,
            eps: 1e-6,
            guidance_embeds: false,
            is_distilled: false,
        };
        return Ok(Preset { sizes: Sizes::Flux2(config), side: 32, text_tokens: 512, expert_layer: 1 });
    }
    let (layers, heads, head_dim, side, patch, text_tokens, expert_layer, joint, pooled) = match name {
        "demo" => (8, 6, 32, 16, 1, 77, 4, 192, 192),
        "sd3-width" => (4, 24, 64, 64, 2, 154, 2, 4096, 2048),
        "sd3-medium" => (24, 24, 64, 128, 2, 154, 9, 4096, 2048),
        // For an emulated GPU, which takes seconds for it; PyTorch's twin has none.
        "tiny" => (2, 1, 32, 4, 1, 77, 1, 64, 64),
        other => {
            let known = "demo, sd3-width, sd3-medium, flux-width, flux-dev, klein-width or tiny";
            return Err(format!("no preset {other}: expected {known}").into());
        }
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
    Ok(Preset { sizes: Sizes::Sd3(config), side, text_tokens, expert_layer })
}

impl Preset {
    /// What any family says of its sizes.
    pub fn general(&self) -> TransformerConfig {
        match &self.sizes {
            Sizes::Sd3(config) => config.general(),
            Sizes::Flux1(config) => config.general(),
            Sizes::Flux2(config) => config.general(),
        }
    }

    /// Makes the model, its first `depth` blocks where that is given, from files of [`Self::write_weights`].
    pub fn load(&self, weights: &Weights, depth: Option<usize>, dtype: DType) -> Result<Transformer> {
        let device = weights.device();
        Ok(match &self.sizes {
            Sizes::Sd3(config) => config.transformer(depth, weights, dtype, device)?,
            Sizes::Flux1(config) => config.transformer(depth, weights, dtype, device)?,
            Sizes::Flux2(config) => config.transformer(depth, weights, dtype, device)?,
        })
    }

    /// Random weights of the model, scaled so that activations keep their size, as files in a folder: few are in memory at
    /// a time, so that the most memory in use is the model's.
    pub fn write_weights(&self, dtype: DType, folder: &Path) -> Result<Vec<PathBuf>> {
        let shapes = match &self.sizes {
            Sizes::Sd3(config) => sd3_shapes(config),
            Sizes::Flux1(config) => flux1_shapes(config),
            Sizes::Flux2(config) => flux2_shapes(config),
        };
        let random = |(number, (name, shape)): (usize, (String, Vec<usize>))| {
            let fan_in: usize = shape[1..].iter().product();
            let noise = normal(0, &[number as u64], &shape[..], &Device::Cpu)?;
            let tensor = match shape.len() {
                1 if name.contains("norm_") => (noise * 0.1)? + 1.0,
                1 => noise * 0.1,
                _ => noise * (fan_in as f64).powf(-0.5),
            };
            seg4diff::system::error::Result::Ok((name, tensor?.to_dtype(dtype)?))
        };
        // Two thousand million numbers for sd3-medium: on all threads.
        let numbered: Vec<_> = shapes.into_iter().enumerate().collect();
        let files = numbered.par_chunks(TENSORS).enumerate().map(|(number, shapes)| {
            let tensors = shapes.iter().cloned().map(random).collect::<seg4diff::system::error::Result<_>>()?;
            let file = folder.join(format!("{number:03}.safetensors"));
            weights::write(&file, &tensors, &BTreeMap::new())?;
            seg4diff::system::error::Result::Ok(file)
        });
        Ok(files.collect::<seg4diff::system::error::Result<_>>()?)
    }
}

/// Those of a layer with a bias.
fn linear(shapes: &mut Shapes, name: String, inner: usize, outer: usize) {
    shapes.push((format!("{name}.weight"), vec![outer, inner]));
    shapes.push((format!("{name}.bias"), vec![outer]));
}

fn sd3_shapes(config: &MmDitConfig) -> Shapes {
    let (width, patch) = (config.width(), config.patch_size);
    let mut shapes: Shapes = vec![];
    for (name, inner, outer) in [
        ("context_embedder", config.joint_attention_dim, width),
        ("time_text_embed.timestep_embedder.linear_1", 256, width),
        ("time_text_embed.timestep_embedder.linear_2", width, width),
        ("time_text_embed.text_embedder.linear_1", config.pooled_projection_dim, width),
        ("time_text_embed.text_embedder.linear_2", width, width),
        ("norm_out.linear", width, 2 * width),
        ("proj_out", width, patch * patch * config.out_channels()),
    ] {
        linear(&mut shapes, name.to_string(), inner, outer);
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
                linear(&mut shapes, format!("transformer_blocks.{layer}.attn.{name}"), width, width);
            }
        }
        if !last {
            of_block.extend([("ff_context.net.0.proj", width, 4 * width), ("ff_context.net.2", 4 * width, width)]);
        }
        for (name, inner, outer) in of_block {
            linear(&mut shapes, format!("transformer_blocks.{layer}.{name}"), inner, outer);
        }
    }
    shapes.push(("pos_embed.proj.weight".into(), vec![width, config.in_channels, patch, patch]));
    shapes.push(("pos_embed.proj.bias".into(), vec![width]));
    shapes.push(("pos_embed.pos_embed".into(), vec![1, config.pos_embed_max_size.pow(2), width]));
    shapes
}

fn flux1_shapes(config: &FluxConfig) -> Shapes {
    let width = config.width();
    let mut shapes: Shapes = vec![];
    for (name, inner, outer) in [
        ("x_embedder", config.in_channels, width),
        ("context_embedder", config.joint_attention_dim, width),
        ("norm_out.linear", width, 2 * width),
        ("proj_out", width, config.in_channels),
    ] {
        linear(&mut shapes, name.to_string(), inner, outer);
    }
    for (name, inner) in
        [("timestep_embedder", 256), ("guidance_embedder", 256), ("text_embedder", config.pooled_projection_dim)]
    {
        linear(&mut shapes, format!("time_text_embed.{name}.linear_1"), inner, width);
        linear(&mut shapes, format!("time_text_embed.{name}.linear_2"), width, width);
    }
    let around = [
        ("norm1.linear", 1, 6),
        ("norm1_context.linear", 1, 6),
        ("ff.net.0.proj", 1, 4),
        ("ff.net.2", 4, 1),
        ("ff_context.net.0.proj", 1, 4),
        ("ff_context.net.2", 4, 1),
    ];
    let (double, single) = (
        [&around[..2], &ATTENTION, &around[2..]].concat(),
        [
            ("norm.linear", 1, 3),
            ("attn.to_q", 1, 1),
            ("attn.to_k", 1, 1),
            ("attn.to_v", 1, 1),
            ("proj_mlp", 1, 4),
            ("proj_out", 5, 1),
        ],
    );
    let lists = [(config.num_layers, &double[..]), (config.num_single_layers, &single[..])];
    flux_blocks(&mut shapes, (width, config.attention_head_dim), lists);
    shapes
}

fn flux2_shapes(config: &Flux2Config) -> Shapes {
    let (width, ratio) = (config.width(), config.mlp_ratio as usize);
    let mut shapes: Shapes = vec![];
    for (name, inner, outer) in [
        ("x_embedder", config.in_channels, width),
        ("context_embedder", config.joint_attention_dim, width),
        ("time_guidance_embed.timestep_embedder.linear_1", config.timestep_guidance_channels, width),
        ("time_guidance_embed.timestep_embedder.linear_2", width, width),
        ("double_stream_modulation_img.linear", width, 6 * width),
        ("double_stream_modulation_txt.linear", width, 6 * width),
        ("single_stream_modulation.linear", width, 3 * width),
        ("norm_out.linear", width, 2 * width),
        ("proj_out", width, config.in_channels),
    ] {
        linear(&mut shapes, name.to_string(), inner, outer);
    }
    let feed_forward = [
        ("ff.linear_in", 1, 2 * ratio),
        ("ff.linear_out", ratio, 1),
        ("ff_context.linear_in", 1, 2 * ratio),
        ("ff_context.linear_out", ratio, 1),
    ];
    let (double, single) = (
        [&ATTENTION[..], &feed_forward].concat(),
        [("attn.to_qkv_mlp_proj", 1, 3 + 2 * ratio), ("attn.to_out", 1 + ratio, 1)],
    );
    let lists = [(config.num_layers, &double[..]), (config.num_single_layers, &single[..])];
    flux_blocks(&mut shapes, (width, config.attention_head_dim), lists);
    // It has no biases.
    shapes.retain(|(name, _)| !name.ends_with(".bias"));
    shapes
}

/// A layer's name within its block, and its inputs and outputs over the width.
type Layer = (&'static str, usize, usize);

/// Layers of FLUX's double-stream blocks around the joint attention.
const ATTENTION: [Layer; 8] = [
    ("attn.to_q", 1, 1),
    ("attn.to_k", 1, 1),
    ("attn.to_v", 1, 1),
    ("attn.to_out.0", 1, 1),
    ("attn.add_q_proj", 1, 1),
    ("attn.add_k_proj", 1, 1),
    ("attn.add_v_proj", 1, 1),
    ("attn.to_add_out", 1, 1),
];

/// FLUX's blocks: how many there are of each kind, double-stream ones first, and their layers.
fn flux_blocks(shapes: &mut Shapes, (width, head_dim): (usize, usize), [double, single]: [(usize, &[Layer]); 2]) {
    for (list, (count, layers), norms) in [
        ("transformer_blocks", double, &["q", "k", "added_q", "added_k"][..]),
        ("single_transformer_blocks", single, &["q", "k"]),
    ] {
        for layer in 0..count {
            for (name, inner, outer) in layers {
                linear(shapes, format!("{list}.{layer}.{name}"), inner * width, outer * width);
            }
            for norm in norms {
                shapes.push((format!("{list}.{layer}.attn.norm_{norm}.weight"), vec![head_dim]));
            }
        }
    }
}

/// To so many digits after the point.
pub fn rounded(value: f64, digits: i32) -> f64 {
    (value * 10f64.powi(digits)).round() / 10f64.powi(digits)
}
