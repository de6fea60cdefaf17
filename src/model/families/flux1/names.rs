//! Names of FLUX.1's networks and layers, in diffusers and in the original checkpoint.
use crate::model::families::flux::{ATTENTION, OUTPUT_NORM, double_blocks, single_blocks};
use crate::model::families::names::KohyaNames;

/// Names of kohya-ss/sd-scripts (`networks/lora_flux.py`).
pub static KOHYA: KohyaNames = KohyaNames {
    architecture: "flux-1",
    implementation: "https://github.com/black-forest-labs/flux",
    network_module: "networks.lora_flux",
    blocks: &[
        ATTENTION,
        double_blocks(&[
            ("img_mlp.0", &[("ff.net.0.proj", 1)]),
            ("img_mlp.2", &[("ff.net.2", 1)]),
            ("txt_mlp.0", &[("ff_context.net.0.proj", 1)]),
            ("txt_mlp.2", &[("ff_context.net.2", 1)]),
            ("img_mod.lin", &[("norm1.linear", 1)]),
            ("txt_mod.lin", &[("norm1_context.linear", 1)]),
        ]),
        single_blocks(&[
            ("linear1", &[("attn.to_q", 1), ("attn.to_k", 1), ("attn.to_v", 1), ("proj_mlp", 4)]),
            ("linear2", &[("proj_out", 1)]),
            ("modulation.lin", &[("norm.linear", 1)]),
        ]),
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
