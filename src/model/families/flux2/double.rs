//! A double-stream block (diffusers' `Flux2TransformerBlock`): image and text have layers of their own around the joint
//! attention. Its modulation is that of all such blocks. A single-stream block follows, for which the text matters.
use super::config::Flux2Config;
use super::embed::SharedModulation;
use crate::model::families::config::FamilyConfig;
use crate::model::families::double_stream::DoubleStreamBlock;
use crate::model::families::flux::DOUBLE_BLOCKS;
use crate::model::families::stream_layers::{
    FeedForwardLayers, IMAGE_QKV, ModulationSource, Qkv, StreamInput, StreamOutput, TEXT_QKV,
};
use crate::model::projection::Projection;
use crate::model::weights::Weights;
use crate::system::error::{Error, Result};

/// Takes double-stream block `layer` from `weights`.
///
/// # Errors
/// A tensor is missing or has another shape.
pub fn load(weights: &Weights, config: &Flux2Config, layer: usize) -> Result<DoubleStreamBlock> {
    let prefix = format!("{DOUBLE_BLOCKS}.{layer}");
    let attn = format!("{prefix}.attn");
    let (width, hidden, head_dim) = (config.width(), config.hidden(), config.attention_head_dim);
    let load = Projection::load_without_bias;
    let stream = |shared: SharedModulation, names, attention_out: &str, feed_forward: &str| {
        let qkv = Qkv::load(weights, &attn, names, width, Some(head_dim), load)?;
        let output = StreamOutput {
            attention_out: load(weights, &format!("{attn}.{attention_out}"), width, width)?,
            feed_forward: FeedForwardLayers {
                up: load(weights, &format!("{prefix}.{feed_forward}.linear_in"), width, 2 * hidden)?,
                down: load(weights, &format!("{prefix}.{feed_forward}.linear_out"), hidden, width)?,
                is_gated: true,
            },
        };
        Ok::<_, Error>((StreamInput { modulation: ModulationSource::Shared(shared as usize), qkv }, output))
    };
    let (image, image_output) = stream(SharedModulation::Image, IMAGE_QKV, "to_out.0", "ff")?;
    let (text, text_output) = stream(SharedModulation::Text, TEXT_QKV, "to_add_out", "ff_context")?;
    Ok(DoubleStreamBlock {
        heads: config.num_attention_heads,
        image,
        image_output,
        text,
        text_output: Some(text_output),
        second_attention: None,
        projections: |block| {
            block.flux_projections(["ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out"])
        },
    })
}
