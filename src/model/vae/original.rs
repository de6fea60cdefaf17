//! The autoencoder in one file: names and sizes (diffusers' `convert_ldm_vae_checkpoint`).
use crate::model::weights::naming::{ModuleNames, Naming, Shares};
use crate::model::weights::shapes::Shapes;
use serde_json::{Value, json};

/// A tensor that every autoencoder has, in all names.
pub const MARK: &str = "decoder.conv_in.weight";

/// The autoencoder's names.
pub static NAMING: Naming = Naming { modules: &[&MODULES], swaps_halves: |_, _| false };

const RESNET: &[(&str, Shares)] = &[
    ("norm1", &[("norm1", 1)]),
    ("conv1", &[("conv1", 1)]),
    ("norm2", &[("norm2", 1)]),
    ("conv2", &[("conv2", 1)]),
    ("nin_shortcut", &[("conv_shortcut", 1)]),
];

const ATTENTION: &[(&str, Shares)] = &[
    ("norm", &[("group_norm", 1)]),
    ("q", &[("to_q", 1)]),
    ("k", &[("to_k", 1)]),
    ("v", &[("to_v", 1)]),
    ("proj_out", &[("to_out.0", 1)]),
];

const MODULES: [ModuleNames; 14] = [
    ModuleNames { original: "encoder.down.*.block.*", diffusers: "encoder.down_blocks.*.resnets.*", layers: RESNET },
    ModuleNames { original: "encoder.mid.block_1", diffusers: "encoder.mid_block.resnets.0", layers: RESNET },
    ModuleNames { original: "encoder.mid.block_2", diffusers: "encoder.mid_block.resnets.1", layers: RESNET },
    ModuleNames { original: "encoder.mid.attn_1", diffusers: "encoder.mid_block.attentions.0", layers: ATTENTION },
    // The original counts the decoder's levels from the finest.
    ModuleNames { original: "decoder.up.*.block.*", diffusers: "decoder.up_blocks.^.resnets.*", layers: RESNET },
    ModuleNames { original: "decoder.mid.block_1", diffusers: "decoder.mid_block.resnets.0", layers: RESNET },
    ModuleNames { original: "decoder.mid.block_2", diffusers: "decoder.mid_block.resnets.1", layers: RESNET },
    ModuleNames { original: "decoder.mid.attn_1", diffusers: "decoder.mid_block.attentions.0", layers: ATTENTION },
    ModuleNames {
        original: "encoder.down.*",
        diffusers: "encoder.down_blocks.*",
        layers: &[("downsample.conv", &[("downsamplers.0.conv", 1)])],
    },
    ModuleNames {
        original: "decoder.up.*",
        diffusers: "decoder.up_blocks.^",
        layers: &[("upsample.conv", &[("upsamplers.0.conv", 1)])],
    },
    // FLUX.2's; older ones have these at the top.
    ModuleNames { original: "encoder", diffusers: "", layers: &[("quant_conv", &[("quant_conv", 1)])] },
    ModuleNames { original: "decoder", diffusers: "", layers: &[("post_quant_conv", &[("post_quant_conv", 1)])] },
    ModuleNames { original: "encoder", diffusers: "encoder", layers: &[("norm_out", &[("conv_norm_out", 1)])] },
    ModuleNames { original: "decoder", diffusers: "decoder", layers: &[("norm_out", &[("conv_norm_out", 1)])] },
];

/// Keys of `vae/config.json` that no shape shows, equal in all autoencoders of this kind.
pub fn usual() -> Value {
    json!({"norm_num_groups": 32})
}

/// Keys of `vae/config.json` that the shapes show.
pub fn sizes(shapes: &Shapes) -> Value {
    let level = |index| shapes.size(&format!("encoder.down_blocks.{index}.resnets.0.conv2.weight"), 0);
    let levels = shapes.count("encoder.down_blocks.");
    let of_decoder = |index| shapes.size(&format!("decoder.up_blocks.{index}.resnets.0.conv2.weight"), 0);
    json!({
        "in_channels": shapes.size("encoder.conv_in.weight", 1),
        "out_channels": shapes.size("decoder.conv_out.weight", 0),
        "latent_channels": shapes.size(MARK, 1),
        "block_out_channels": levels.map(|levels| (0..levels).map(level).collect::<Vec<_>>()),
        "decoder_block_out_channels": levels.map(|levels| (0..levels).rev().map(of_decoder).collect::<Vec<_>>()),
        "layers_per_block": shapes.count("encoder.down_blocks.0.resnets."),
        "use_quant_conv": shapes.has("quant_conv.weight"),
        "use_post_quant_conv": shapes.has("post_quant_conv.weight"),
        "mid_block_add_attention": shapes.numbers("decoder.mid_block.attentions.").contains(&0),
    })
}
