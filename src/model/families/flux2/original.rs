//! FLUX.2-klein in one file: names and sizes (diffusers' `convert_flux2_transformer_checkpoint_to_diffusers`).
use super::names::{DOUBLE_BLOCKS, KOHYA, OUTPUT_NORM, SINGLE_BLOCKS};
use crate::model::families::original::Original;
use crate::model::weights::naming::{ModuleNames, Naming};
use crate::model::weights::shapes::Shapes;
use serde_json::{Value, json};

/// The family's files.
pub static ORIGINAL: Original = Original {
    naming: Naming { modules: &[KOHYA.blocks, &NORMS, &AROUND], swaps_halves: KOHYA.swaps_halves },
    marks: [
        &["double_blocks.0.img_attn.qkv.weight", "single_stream_modulation.lin.weight"],
        &["single_transformer_blocks.0.attn.to_out.weight", "single_stream_modulation.linear.weight"],
    ],
    transformer: || json!({}),
    transformer_sizes,
    vae: || json!({"_class_name": "AutoencoderKLFlux2"}),
    scheduler: |_| json!({"shift": 3.0, "use_dynamic_shifting": true}),
    vae_file: "flux2-vae.safetensors",
    repository: "black-forest-labs/FLUX.2-klein-base-4B",
};

/// Norms of the heads, which no adapter sits on.
const NORMS: [ModuleNames; 2] = [
    ModuleNames {
        original: "double_blocks.*",
        diffusers: "transformer_blocks.*",
        layers: &[
            ("img_attn.norm.query_norm", &[("attn.norm_q", 1)]),
            ("img_attn.norm.key_norm", &[("attn.norm_k", 1)]),
            ("txt_attn.norm.query_norm", &[("attn.norm_added_q", 1)]),
            ("txt_attn.norm.key_norm", &[("attn.norm_added_k", 1)]),
        ],
    },
    ModuleNames {
        original: "single_blocks.*",
        diffusers: "single_transformer_blocks.*",
        layers: &[("norm.query_norm", &[("attn.norm_q", 1)]), ("norm.key_norm", &[("attn.norm_k", 1)])],
    },
];

/// Modules around the blocks.
const AROUND: [ModuleNames; 1] = [ModuleNames {
    original: "",
    diffusers: "",
    layers: &[
        ("img_in", &[("x_embedder", 1)]),
        ("txt_in", &[("context_embedder", 1)]),
        ("time_in.in_layer", &[("time_guidance_embed.timestep_embedder.linear_1", 1)]),
        ("time_in.out_layer", &[("time_guidance_embed.timestep_embedder.linear_2", 1)]),
        ("guidance_in.in_layer", &[(GUIDANCE, 1)]),
        ("guidance_in.out_layer", &[("time_guidance_embed.guidance_embedder.linear_2", 1)]),
        ("double_stream_modulation_img.lin", &[("double_stream_modulation_img.linear", 1)]),
        ("double_stream_modulation_txt.lin", &[("double_stream_modulation_txt.linear", 1)]),
        ("single_stream_modulation.lin", &[("single_stream_modulation.linear", 1)]),
        ("final_layer.linear", &[("proj_out", 1)]),
        ("final_layer.adaLN_modulation.1", &[(OUTPUT_NORM, 1)]),
    ],
}];

/// The first layer of the embedding of the guidance scale, which klein lacks.
const GUIDANCE: &str = "time_guidance_embed.guidance_embedder.linear_1";

fn transformer_sizes(shapes: &Shapes, head_dim: Option<usize>) -> Value {
    let size = |name: &str, dimension| shapes.size(name, dimension);
    let head_dim = size(&format!("{DOUBLE_BLOCKS}.0.attn.norm_q.weight"), 0).or(head_dim).filter(|size| *size > 0);
    let width = size("x_embedder.weight", 0);
    let hidden = size(&format!("{DOUBLE_BLOCKS}.0.ff.linear_out.weight"), 1);
    json!({
        "in_channels": size("x_embedder.weight", 1),
        "out_channels": size("proj_out.weight", 0),
        "num_layers": shapes.count(&format!("{DOUBLE_BLOCKS}.")),
        "num_single_layers": shapes.count(&format!("{SINGLE_BLOCKS}.")),
        "attention_head_dim": head_dim,
        "num_attention_heads": width.zip(head_dim).map(|(width, head_dim)| width / head_dim),
        "joint_attention_dim": size("context_embedder.weight", 1),
        "timestep_guidance_channels": size("time_guidance_embed.timestep_embedder.linear_1.weight", 1),
        "mlp_ratio": hidden.zip(width).map(|(hidden, width)| hidden as f64 / width as f64),
        "guidance_embeds": shapes.has(&format!("{GUIDANCE}.weight")),
    })
}
