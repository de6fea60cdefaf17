//! FLUX.2-klein in one file: names and sizes (diffusers' `convert_flux2_transformer_checkpoint_to_diffusers`).
use super::names::KOHYA;
use crate::model::families::flux::{self, DOUBLE_BLOCKS, NORMS_AND_AROUND};
use crate::model::families::original::Original;
use crate::model::weights::naming::{ModuleNames, Naming};
use crate::model::weights::shapes::Shapes;
use serde_json::{Value, json};

/// The family's files.
pub static ORIGINAL: Original = Original {
    naming: Naming { modules: &[KOHYA.blocks, &NORMS_AND_AROUND, &AROUND], swaps_halves: KOHYA.swaps_halves },
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

/// Modules around the blocks that the other has not.
const AROUND: [ModuleNames; 1] = [ModuleNames::alone(&[
    ("time_in.in_layer", &[("time_guidance_embed.timestep_embedder.linear_1", 1)]),
    ("time_in.out_layer", &[("time_guidance_embed.timestep_embedder.linear_2", 1)]),
    ("guidance_in.in_layer", &[(GUIDANCE, 1)]),
    ("guidance_in.out_layer", &[("time_guidance_embed.guidance_embedder.linear_2", 1)]),
    ("double_stream_modulation_img.lin", &[("double_stream_modulation_img.linear", 1)]),
    ("double_stream_modulation_txt.lin", &[("double_stream_modulation_txt.linear", 1)]),
    ("single_stream_modulation.lin", &[("single_stream_modulation.linear", 1)]),
])];

/// The first layer of the embedding of the guidance scale, which klein lacks.
const GUIDANCE: &str = "time_guidance_embed.guidance_embedder.linear_1";

fn transformer_sizes(shapes: &Shapes, head_dim: Option<usize>) -> Value {
    let (width, hidden) =
        (shapes.size("x_embedder.weight", 0), shapes.size(&format!("{DOUBLE_BLOCKS}.0.ff.linear_out.weight"), 1));
    let mut sizes = flux::sizes(shapes, head_dim);
    sizes["timestep_guidance_channels"] =
        json!(shapes.size("time_guidance_embed.timestep_embedder.linear_1.weight", 1));
    sizes["mlp_ratio"] = json!(hidden.zip(width).map(|(hidden, width)| hidden as f64 / width as f64));
    sizes["guidance_embeds"] = json!(shapes.has(&format!("{GUIDANCE}.weight")));
    sizes
}
