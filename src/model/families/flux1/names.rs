//! Names of FLUX.1's networks and layers, in diffusers and in the original checkpoint.
use crate::model::families::names::KohyaNames;
use crate::model::weights::naming::ModuleNames;

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

/// The modulation of the norm before the output, which no adapter sits on: a scale and a shift in diffusers, in the original
/// checkpoint the shift first.
pub(super) const OUTPUT_NORM: &str = "norm_out.linear";

/// Names of kohya-ss/sd-scripts (`networks/lora_flux.py`).
pub static KOHYA: KohyaNames = KohyaNames {
    architecture: "flux-1",
    implementation: "https://github.com/black-forest-labs/flux",
    network_module: "networks.lora_flux",
    blocks: &[
        ModuleNames {
            original: "double_blocks.*",
            diffusers: "transformer_blocks.*",
            layers: &[
                ("img_attn.qkv", &[("attn.to_q", 1), ("attn.to_k", 1), ("attn.to_v", 1)]),
                ("img_attn.proj", &[("attn.to_out.0", 1)]),
                ("txt_attn.qkv", &[("attn.add_q_proj", 1), ("attn.add_k_proj", 1), ("attn.add_v_proj", 1)]),
                ("txt_attn.proj", &[("attn.to_add_out", 1)]),
                ("img_mlp.0", &[("ff.net.0.proj", 1)]),
                ("img_mlp.2", &[("ff.net.2", 1)]),
                ("txt_mlp.0", &[("ff_context.net.0.proj", 1)]),
                ("txt_mlp.2", &[("ff_context.net.2", 1)]),
                ("img_mod.lin", &[("norm1.linear", 1)]),
                ("txt_mod.lin", &[("norm1_context.linear", 1)]),
            ],
        },
        ModuleNames {
            original: "single_blocks.*",
            diffusers: "single_transformer_blocks.*",
            layers: &[
                ("linear1", &[("attn.to_q", 1), ("attn.to_k", 1), ("attn.to_v", 1), ("proj_mlp", 4)]),
                ("linear2", &[("proj_out", 1)]),
                ("modulation.lin", &[("norm.linear", 1)]),
            ],
        },
    ],
    swaps_halves: |layer, _| layer == OUTPUT_NORM,
    fits: |layer, (inner, outer)| match layer {
        "linear1" => outer == 7 * inner,
        "linear2" => inner == 5 * outer,
        "img_mlp.0" | "txt_mlp.0" => outer == 4 * inner,
        "img_mlp.2" | "txt_mlp.2" => inner == 4 * outer,
        _ => true,
    },
};
