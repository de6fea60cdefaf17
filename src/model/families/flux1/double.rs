//! A double-stream block (diffusers' `FluxTransformerBlock`): image and text have layers of their own around the joint
//! attention. A single-stream block follows, for which the text matters.
use super::config::FluxConfig;
use crate::model::families::config::FamilyConfig;
use crate::model::families::double_stream::DoubleStreamBlock;
use crate::model::families::flux::DOUBLE_BLOCKS;
use crate::model::families::stream_layers::{IMAGE_QKV, ModulationSource, Qkv, StreamInput, StreamOutput, TEXT_QKV};
use crate::model::projection::Projection;
use crate::model::weights::Weights;
use crate::system::error::{Error, Result};

/// Takes double-stream block `layer` from `weights`.
///
/// # Errors
/// A tensor is missing or has another shape.
pub fn load(weights: &Weights, config: &FluxConfig, layer: usize) -> Result<DoubleStreamBlock> {
    let prefix = format!("{DOUBLE_BLOCKS}.{layer}");
    let attn = format!("{prefix}.attn");
    let (width, head_dim) = (config.width(), config.attention_head_dim);
    let input = |norm1: &str, names| {
        let norm1 = Projection::load(weights, &format!("{prefix}.{norm1}.linear"), width, 6 * width)?;
        let qkv = Qkv::load(weights, &attn, names, width, Some(head_dim), Projection::load)?;
        Ok::<_, Error>(StreamInput { modulation: ModulationSource::Layer(norm1), qkv })
    };
    let output = |attention_out: &str, feed_forward: &str| {
        StreamOutput::load(weights, width, &format!("{attn}.{attention_out}"), &format!("{prefix}.{feed_forward}"))
    };
    Ok(DoubleStreamBlock {
        heads: config.num_attention_heads,
        image: input("norm1", IMAGE_QKV)?,
        image_output: output("to_out.0", "ff")?,
        text: input("norm1_context", TEXT_QKV)?,
        text_output: Some(output("to_add_out", "ff_context")?),
        second_attention: None,
        projections: |block| {
            block.flux_projections(["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"])
        },
    })
}
