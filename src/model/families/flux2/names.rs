//! Names of FLUX.2's networks and layers, in diffusers and in the original checkpoint.
use crate::model::families::flux::{ATTENTION, OUTPUT_NORM, double_blocks, single_blocks};
use crate::model::families::names::KohyaNames;

/// A single-stream block's layer to queries, keys, values and the MLP's two inputs, one after the other.
pub const FUSED_INPUT: &str = "attn.to_qkv_mlp_proj";

/// A single-stream block's layer from the attention's result and the MLP's features, side by side.
pub const FUSED_OUTPUT: &str = "attn.to_out";

/// Names of kohya's musubi-tuner (`networks/lora_flux_2.py`), as diffusers reads them
/// (`_convert_kohya_flux2_lora_to_diffusers`).
pub static KOHYA: KohyaNames = KohyaNames {
    architecture: "flux-2",
    implementation: "https://github.com/black-forest-labs/flux2",
    network_module: "networks.lora_flux_2",
    blocks: &[
        ATTENTION,
        double_blocks(&[
            ("img_mlp.0", &[("ff.linear_in", 1)]),
            ("img_mlp.2", &[("ff.linear_out", 1)]),
            ("txt_mlp.0", &[("ff_context.linear_in", 1)]),
            ("txt_mlp.2", &[("ff_context.linear_out", 1)]),
        ]),
        single_blocks(&[("linear1", &[(FUSED_INPUT, 1)]), ("linear2", &[(FUSED_OUTPUT, 1)])]),
    ],
    swaps_halves: |layer, _| layer == OUTPUT_NORM,
    fits: |layer, (inner, outer)| match layer {
        "linear1" => outer == 9 * inner,
        "linear2" => inner == 4 * outer,
        "img_mlp.0" | "txt_mlp.0" => outer == 6 * inner,
        "img_mlp.2" | "txt_mlp.2" => inner == 3 * outer,
        _ => true,
    },
};
