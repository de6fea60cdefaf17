//! One block of the MM-DiT (diffusers' `JointTransformerBlock`).
use super::config::MmDitConfig;
use super::names::BLOCKS;
use crate::model::families::config::FamilyConfig;
use crate::model::families::double_stream::{DoubleStreamBlock, SelfAttention};
use crate::model::families::stream_layers::{IMAGE_QKV, ModulationSource, Qkv, StreamInput, StreamOutput, TEXT_QKV};
use crate::model::projection::Projection;
use crate::model::weights::Weights;
use crate::system::error::{Error, Result};

/// Takes block `layer` from `weights`.
///
/// # Errors
/// A tensor is missing or has another shape.
pub fn load(weights: &Weights, config: &MmDitConfig, layer: usize) -> Result<DoubleStreamBlock> {
    let prefix = format!("{BLOCKS}.{layer}");
    let attn = format!("{prefix}.attn");
    let width = config.width();
    let normed = config.qk_norm.is_some().then_some(config.attention_head_dim);
    let last = config.is_last(layer);
    let dual = config.dual_attention_layers.contains(&layer);
    let input = |norm1: &str, parts: usize, names| {
        let norm1 = Projection::load(weights, &format!("{prefix}.{norm1}.linear"), width, parts * width)?;
        let qkv = Qkv::load(weights, &attn, names, width, normed, Projection::load)?;
        Ok::<_, Error>(StreamInput { modulation: ModulationSource::Layer(norm1), qkv })
    };
    let output = |attention_out: &str, feed_forward: &str| {
        StreamOutput::load(weights, width, &format!("{attn}.{attention_out}"), &format!("{prefix}.{feed_forward}"))
    };
    let second_attention = || {
        let attn2 = format!("{prefix}.attn2");
        Ok::<_, Error>(SelfAttention {
            qkv: Qkv::load(weights, &attn2, IMAGE_QKV, width, normed, Projection::load)?,
            out: Projection::load(weights, &format!("{attn2}.to_out.0"), width, width)?,
        })
    };
    Ok(DoubleStreamBlock {
        heads: config.num_attention_heads,
        // First what not every block has: its absence says best which block a file is wrong about.
        second_attention: dual.then(second_attention).transpose()?,
        text_output: (!last).then(|| output("to_add_out", "ff_context")).transpose()?,
        image: input("norm1", if dual { 9 } else { 6 }, IMAGE_QKV)?,
        image_output: output("to_out.0", "ff")?,
        text: input("norm1_context", if last { 2 } else { 6 }, TEXT_QKV)?,
        projections,
    })
}

fn projections(block: &mut DoubleStreamBlock) -> Vec<(&'static str, &mut Projection)> {
    let mut all = vec![
        ("attn.to_q", &mut block.image.qkv.q.projection),
        ("attn.to_k", &mut block.image.qkv.k.projection),
        ("attn.to_v", &mut block.image.qkv.v.projection),
        ("attn.to_out.0", &mut block.image_output.attention_out),
        ("attn.add_q_proj", &mut block.text.qkv.q.projection),
        ("attn.add_k_proj", &mut block.text.qkv.k.projection),
        ("attn.add_v_proj", &mut block.text.qkv.v.projection),
        ("ff.net.0.proj", &mut block.image_output.feed_forward.up),
        ("ff.net.2", &mut block.image_output.feed_forward.down),
    ];
    all.extend(block.image.modulation.layer().map(|layer| ("norm1.linear", layer)));
    all.extend(block.text.modulation.layer().map(|layer| ("norm1_context.linear", layer)));
    if let Some(attention) = &mut block.second_attention {
        all.push(("attn2.to_q", &mut attention.qkv.q.projection));
        all.push(("attn2.to_k", &mut attention.qkv.k.projection));
        all.push(("attn2.to_v", &mut attention.qkv.v.projection));
        all.push(("attn2.to_out.0", &mut attention.out));
    }
    if let Some(text) = &mut block.text_output {
        all.push(("attn.to_add_out", &mut text.attention_out));
        all.push(("ff_context.net.0.proj", &mut text.feed_forward.up));
        all.push(("ff_context.net.2", &mut text.feed_forward.down));
    }
    all
}
