//! A family's names in the files of other tools.

/// What kohya's metadata calls a released model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// `ss_base_model_version`, such as `5-medium`.
    pub base_model_version: &'static str,
    /// `modelspec.architecture` without what follows the slash, such as `stable-diffusion-3-5-medium`.
    pub architecture: &'static str,
}

/// A family's layers in the original checkpoint, where some that are several in diffusers are one.
pub struct KohyaNames {
    /// What `modelspec.architecture` of the family's models begins with.
    pub architecture: &'static str,
    /// `modelspec.implementation`: where the model's original code is.
    pub implementation: &'static str,
    /// `ss_network_module`: the module of kohya's trainer that makes such adapters.
    pub network_module: &'static str,
    /// One entry for each kind of block.
    pub blocks: &'static [KohyaBlocks],
    /// Whether the two halves of a layer's outputs lie the other way round there, given its name within the block and its
    /// inputs and outputs.
    pub swaps_halves: fn(layer: &str, sizes: (usize, usize)) -> bool,
}

/// Names of one list of blocks.
pub struct KohyaBlocks {
    /// Before the block's number, in kohya's names: `lora_unet_joint_blocks_`.
    pub stem: &'static str,
    /// Before it in diffusers' names.
    pub diffusers: &'static str,
    /// A layer there, and the layers of diffusers that are its outputs, in order, each with its share of them.
    pub layers: &'static [(&'static str, &'static [(&'static str, usize)])],
}
