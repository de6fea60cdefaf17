//! Stable Diffusion 3 and 3.5 in one file: names and sizes (diffusers' `convert_sd3_transformer_checkpoint_to_diffusers`).
use super::names::{BLOCKS, KOHYA, OUTPUT_NORM};
use crate::model::families::original::Original;
use crate::model::weights::naming::{ModuleNames, Naming};
use crate::model::weights::shapes::Shapes;
use serde_json::{Value, json};

/// The family's files.
pub static ORIGINAL: Original = Original {
    naming: Naming { modules: &[KOHYA.blocks, &NORMS, &AROUND], swaps_halves: KOHYA.swaps_halves },
    marks: [
        &["joint_blocks.0.x_block.attn.qkv.weight", "pos_embed"],
        &["transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.pos_embed"],
    ],
    transformer: || json!({"attention_head_dim": 64}),
    transformer_sizes,
    // The released autoencoder's.
    vae: || json!({"scaling_factor": 1.5305, "shift_factor": 0.0609}),
    scheduler: |_| json!({"shift": 3.0}),
    vae_file: "vae/diffusion_pytorch_model.safetensors",
    repository: "stabilityai/stable-diffusion-3-medium-diffusers",
};

/// Norms of the heads, which no adapter sits on.
const NORMS: [ModuleNames; 1] = [ModuleNames {
    original: "joint_blocks.*",
    diffusers: "transformer_blocks.*",
    layers: &[
        ("x_block.attn.ln_q", &[("attn.norm_q", 1)]),
        ("x_block.attn.ln_k", &[("attn.norm_k", 1)]),
        ("context_block.attn.ln_q", &[("attn.norm_added_q", 1)]),
        ("context_block.attn.ln_k", &[("attn.norm_added_k", 1)]),
        ("x_block.attn2.ln_q", &[("attn2.norm_q", 1)]),
        ("x_block.attn2.ln_k", &[("attn2.norm_k", 1)]),
    ],
}];

/// Modules around the blocks.
const AROUND: [ModuleNames; 1] = [ModuleNames::alone(&[
    ("pos_embed", &[("pos_embed.pos_embed", 1)]),
    ("x_embedder.proj", &[("pos_embed.proj", 1)]),
    ("t_embedder.mlp.0", &[("time_text_embed.timestep_embedder.linear_1", 1)]),
    ("t_embedder.mlp.2", &[("time_text_embed.timestep_embedder.linear_2", 1)]),
    ("y_embedder.mlp.0", &[("time_text_embed.text_embedder.linear_1", 1)]),
    ("y_embedder.mlp.2", &[("time_text_embed.text_embedder.linear_2", 1)]),
    ("final_layer.linear", &[("proj_out", 1)]),
    ("final_layer.adaLN_modulation.1", &[(OUTPUT_NORM, 1)]),
])];

fn transformer_sizes(shapes: &Shapes, head_dim: Option<usize>) -> Value {
    let size = |name: &str, dimension| shapes.size(name, dimension);
    let (width, patch) = (size("context_embedder.weight", 0), size("pos_embed.proj.weight", 2));
    let normed = size(&format!("{BLOCKS}.0.attn.norm_q.weight"), 0);
    let head_dim = normed.or(head_dim).filter(|head_dim| *head_dim > 0);
    let second = |layer: &usize| shapes.has(&format!("{BLOCKS}.{layer}.attn2.to_q.weight"));
    let blocks = shapes.numbers(&format!("{BLOCKS}."));
    json!({
        "patch_size": patch,
        "in_channels": size("pos_embed.proj.weight", 1),
        "out_channels": size("proj_out.weight", 0).zip(patch.filter(|patch| *patch > 0)).map(|(out, p)| out / (p * p)),
        "num_layers": shapes.count(&format!("{BLOCKS}.")),
        "attention_head_dim": head_dim,
        "num_attention_heads": width.zip(head_dim).map(|(width, head_dim)| width / head_dim),
        "joint_attention_dim": size("context_embedder.weight", 1),
        "caption_projection_dim": width,
        "pooled_projection_dim": size("time_text_embed.text_embedder.linear_1.weight", 1),
        "pos_embed_max_size": size("pos_embed.pos_embed", 1).map(usize::isqrt),
        "dual_attention_layers": blocks.iter().filter(|layer| second(layer)).collect::<Vec<_>>(),
        "qk_norm": normed.map(|_| "rms_norm"),
    })
}
