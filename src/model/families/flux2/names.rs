//! Names of FLUX.2's networks and layers, in diffusers and in the original checkpoint.
use crate::model::families::names::KohyaNames;
use crate::model::weights::naming::ModuleNames;

/// The list of double-stream blocks in diffusers' names.
pub const DOUBLE_BLOCKS: &str = "transformer_blocks";

/// The list of single-stream blocks in diffusers' names.
pub const SINGLE_BLOCKS: &str = "single_transformer_blocks";

/// A single-stream block's layer to queries, keys, values and the MLP's two inputs, one after the other.
pub const FUSED_INPUT: &str = "attn.to_qkv_mlp_proj";

/// A single-stream block's layer from the attention's result and the MLP's features, side by side.
pub const FUSED_OUTPUT: &str = "attn.to_out";

/// Layers that get an adapter where none are named: those of diffusers' `train_dreambooth_lora_flux2_klein.py`.
pub const DEFAULT_TARGETS: [&str; 6] =
    ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", FUSED_INPUT, FUSED_OUTPUT];

/// diffusers' names of the layers that an adapter can sit on.
pub const ADAPTER_TARGETS: [&str; 14] = [
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "ff.linear_in",
    "ff.linear_out",
    "ff_context.linear_in",
    "ff_context.linear_out",
    FUSED_INPUT,
    FUSED_OUTPUT,
];

/// The modulation of the norm before the output, which no adapter sits on: a scale and a shift in diffusers, in the original
/// checkpoint the shift first.
pub(super) const OUTPUT_NORM: &str = "norm_out.linear";

/// Names of kohya's musubi-tuner (`networks/lora_flux_2.py`), as diffusers reads them
/// (`_convert_kohya_flux2_lora_to_diffusers`).
pub static KOHYA: KohyaNames = KohyaNames {
    architecture: "flux-2",
    implementation: "https://github.com/black-forest-labs/flux2",
    network_module: "networks.lora_flux_2",
    blocks: &[
        ModuleNames {
            original: "double_blocks.*",
            diffusers: "transformer_blocks.*",
            layers: &[
                ("img_attn.qkv", &[("attn.to_q", 1), ("attn.to_k", 1), ("attn.to_v", 1)]),
                ("img_attn.proj", &[("attn.to_out.0", 1)]),
                ("txt_attn.qkv", &[("attn.add_q_proj", 1), ("attn.add_k_proj", 1), ("attn.add_v_proj", 1)]),
                ("txt_attn.proj", &[("attn.to_add_out", 1)]),
                ("img_mlp.0", &[("ff.linear_in", 1)]),
                ("img_mlp.2", &[("ff.linear_out", 1)]),
                ("txt_mlp.0", &[("ff_context.linear_in", 1)]),
                ("txt_mlp.2", &[("ff_context.linear_out", 1)]),
            ],
        },
        ModuleNames {
            original: "single_blocks.*",
            diffusers: "single_transformer_blocks.*",
            layers: &[("linear1", &[(FUSED_INPUT, 1)]), ("linear2", &[(FUSED_OUTPUT, 1)])],
        },
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
