//! Names of the layers of a block, in diffusers and in the original checkpoint.
use crate::model::families::names::KohyaNames;
use crate::model::weights::naming::ModuleNames;

/// The list of blocks in diffusers' names.
pub const BLOCKS: &str = "transformer_blocks";

const CONTEXT_NORM: &str = "norm1_context.linear";

/// The modulation of the norm before the output, which no adapter sits on.
pub(super) const OUTPUT_NORM: &str = "norm_out.linear";

/// Names of kohya-ss/sd-scripts (`networks/lora_sd3.py`).
pub static KOHYA: KohyaNames = KohyaNames {
    architecture: "stable-diffusion-3",
    implementation: "https://github.com/Stability-AI/generative-models",
    network_module: "networks.lora_sd3",
    blocks: &[ModuleNames {
        original: "joint_blocks.*",
        diffusers: "transformer_blocks.*",
        layers: &[
            ("x_block.attn.qkv", &[("attn.to_q", 1), ("attn.to_k", 1), ("attn.to_v", 1)]),
            ("x_block.attn.proj", &[("attn.to_out.0", 1)]),
            ("context_block.attn.qkv", &[("attn.add_q_proj", 1), ("attn.add_k_proj", 1), ("attn.add_v_proj", 1)]),
            ("context_block.attn.proj", &[("attn.to_add_out", 1)]),
            ("x_block.attn2.qkv", &[("attn2.to_q", 1), ("attn2.to_k", 1), ("attn2.to_v", 1)]),
            ("x_block.attn2.proj", &[("attn2.to_out.0", 1)]),
            ("x_block.mlp.fc1", &[("ff.net.0.proj", 1)]),
            ("x_block.mlp.fc2", &[("ff.net.2", 1)]),
            ("context_block.mlp.fc1", &[("ff_context.net.0.proj", 1)]),
            ("context_block.mlp.fc2", &[("ff_context.net.2", 1)]),
            ("x_block.adaLN_modulation.1", &[("norm1.linear", 1)]),
            ("context_block.adaLN_modulation.1", &[(CONTEXT_NORM, 1)]),
        ],
    }],
    swaps_halves,
    fits: |_, _| true,
};

/// The last block modulates its text by a scale and a shift only, `out = 2·in`: diffusers stores the scale first, the
/// original checkpoint the shift; so does the norm before the output. The other blocks' six parts have one order.
fn swaps_halves(layer: &str, (inner, outer): (usize, usize)) -> bool {
    layer == OUTPUT_NORM || layer == CONTEXT_NORM && outer == 2 * inner
}
