//! A family's names in the files of other tools.
use crate::model::weights::naming::ModuleNames;

/// What kohya's metadata calls a released model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// `ss_base_model_version`, such as `5-medium`.
    pub base_model_version: &'static str,
    /// `modelspec.architecture` without what follows the slash, such as `stable-diffusion-3-5-medium`.
    pub architecture: &'static str,
}

/// A family's layers in the original checkpoint, where some that are several in diffusers are one: what adapters of kohya's
/// trainer and ComfyUI are named by.
#[derive(Debug)]
pub struct KohyaNames {
    /// What `modelspec.architecture` of the family's models begins with.
    pub architecture: &'static str,
    /// `modelspec.implementation`: where the model's original code is.
    pub implementation: &'static str,
    /// `ss_network_module`: the module of kohya's trainer that makes such adapters.
    pub network_module: &'static str,
    /// The blocks' layers that an adapter can sit on. kohya's trainer writes `lora_unet_joint_blocks_0_x_block_attn_qkv` for
    /// `joint_blocks.0.x_block.attn.qkv`.
    pub blocks: &'static [ModuleNames],
    /// Whether the two halves of a layer's outputs lie the other way round there, given its name within the block and its
    /// inputs and outputs.
    pub swaps_halves: fn(layer: &str, sizes: (usize, usize)) -> bool,
    /// Whether a layer of the original checkpoint, given its name within the block, has so many inputs and outputs there:
    /// families with equal names of blocks are told apart by it.
    pub fits: fn(layer: &str, sizes: (usize, usize)) -> bool,
}
