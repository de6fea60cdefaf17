//! Names of FLUX.1's networks and layers, in diffusers and in the original checkpoint.
use crate::model::families::names::{KohyaBlocks, KohyaNames};

/// The list of double-stream blocks in diffusers' names.
pub const DOUBLE_BLOCKS: &str = "transformer_blocks";

/// The list of single-stream blocks in diffusers' names.
pub const SINGLE_BLOCKS: &str = "single_transformer_blocks";

/// Layers that get an adapter where none are named. Single-stream blocks have no `attn.to_out.0`.
pub const DEFAULT_TARGETS: [&str; 4] = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"];

/// diffusers' names of the layers that an adapter can sit on.
pub const ADAPTER_TARGETS: [&str; 17] = [
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
    "norm1.linear",
    "norm1_context.linear",
    "proj_mlp",
    "proj_out",
    "norm.linear",
];

/// Names of kohya-ss/sd-scripts (`networks/lora_flux.py`).
pub static KOHYA: KohyaNames = KohyaNames {
    architecture: "flux-1",
    implementation: "https://github.com/black-forest-labs/flux",
    network_module: "networks.lora_flux",
    blocks: &[
        KohyaBlocks {
            stem: "lora_unet_double_blocks_",
            diffusers: "transformer_blocks.",
            layers: &[
                ("img_attn_qkv", &[("attn.to_q", 1), ("attn.to_k", 1), ("attn.to_v", 1)]),
                ("img_attn_proj", &[("attn.to_out.0", 1)]),
                ("txt_attn_qkv", &[("attn.add_q_proj", 1), ("attn.add_k_proj", 1), ("attn.add_v_proj", 1)]),
                ("txt_attn_proj", &[("attn.to_add_out", 1)]),
                ("img_mlp_0", &[("ff.net.0.proj", 1)]),
                ("img_mlp_2", &[("ff.net.2", 1)]),
                ("txt_mlp_0", &[("ff_context.net.0.proj", 1)]),
                ("txt_mlp_2", &[("ff_context.net.2", 1)]),
                ("img_mod_lin", &[("norm1.linear", 1)]),
                ("txt_mod_lin", &[("norm1_context.linear", 1)]),
            ],
        },
        KohyaBlocks {
            stem: "lora_unet_single_blocks_",
            diffusers: "single_transformer_blocks.",
            layers: &[
                ("linear1", &[("attn.to_q", 1), ("attn.to_k", 1), ("attn.to_v", 1), ("proj_mlp", 4)]),
                ("linear2", &[("proj_out", 1)]),
                ("modulation_lin", &[("norm.linear", 1)]),
            ],
        },
    ],
    swaps_halves: |_, _| false,
};
