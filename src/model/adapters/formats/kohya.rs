//! The names of kohya's trainer, which ComfyUI takes too: those of the original checkpoint, with q, k and v fused.
use super::{Family, Origin, Parts, Tensors, unknown_key};
use crate::model::adapters::lora::{Adapter, Lora};
use crate::model::weights;
use crate::system::error::{Error, Result};
use candle_core::Tensor;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

pub(super) const PREFIX: &str = "lora_";
const STEM: &str = "lora_unet_joint_blocks_";

/// Original stem of a module within a block, and the modules of diffusers that are its rows, in order.
const MODULES: [(&str, &[&str]); 12] = [
    ("x_block_attn_qkv", &["attn.to_q", "attn.to_k", "attn.to_v"]),
    ("x_block_attn_proj", &["attn.to_out.0"]),
    ("context_block_attn_qkv", &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]),
    ("context_block_attn_proj", &["attn.to_add_out"]),
    ("x_block_attn2_qkv", &["attn2.to_q", "attn2.to_k", "attn2.to_v"]),
    ("x_block_attn2_proj", &["attn2.to_out.0"]),
    ("x_block_mlp_fc1", &["ff.net.0.proj"]),
    ("x_block_mlp_fc2", &["ff.net.2"]),
    ("context_block_mlp_fc1", &["ff_context.net.0.proj"]),
    ("context_block_mlp_fc2", &["ff_context.net.2"]),
    ("x_block_adaLN_modulation_1", &["norm1.linear"]),
    (CONTEXT_NORM, &["norm1_context.linear"]),
];
const CONTEXT_NORM: &str = "context_block_adaLN_modulation_1";

/// Writes `lora_unet_joint_blocks_…` with `.lora_down.weight`, `.lora_up.weight` and `.alpha`.
pub(super) fn write(adapter: &Adapter, file: &Path, origin: &Origin) -> Result<()> {
    // original stem → its parts, at their places
    let mut stems: BTreeMap<String, Vec<Option<&Lora>>> = BTreeMap::new();
    for (module, lora) in adapter {
        let (block, within) = module
            .strip_prefix("transformer_blocks.")
            .and_then(|rest| rest.split_once('.'))
            .filter(|(block, _)| block.parse::<usize>().is_ok())
            .ok_or_else(|| no_name(module))?;
        let place = |parts: &[&str]| parts.iter().position(|part| *part == within);
        let (stem, parts, at) = MODULES
            .iter()
            .find_map(|(stem, parts)| Some((stem, parts, place(parts)?)))
            .ok_or_else(|| no_name(module))?;
        stems.entry(format!("{STEM}{block}_{stem}")).or_insert_with(|| vec![None; parts.len()])[at] = Some(lora);
    }
    let mut tensors = Tensors::new();
    for (stem, parts) in stems {
        let fused = match parts.as_slice() {
            [Some(lora)] => Lora::clone(lora),
            _ => fuse(&parts)?,
        };
        let up = if stem.ends_with(CONTEXT_NORM) { swap_last_norm(&fused)? } else { fused.up };
        tensors.insert(format!("{stem}.alpha"), Tensor::new(fused.alpha as f32, up.device())?);
        tensors.insert(format!("{stem}.lora_down.weight"), fused.down);
        tensors.insert(format!("{stem}.lora_up.weight"), up);
    }
    let mut metadata = training_metadata(adapter, origin);
    // as kohya does: the hashes are those of the file with its training metadata alone
    weights::write(file, &tensors, &metadata)?;
    let (model, legacy) = hashes(file)?;
    if let Some(family) = origin.family {
        let name = version(family);
        metadata.insert("modelspec.architecture".into(), format!("stable-diffusion-3-{name}/lora"));
    }
    if let Some(side) = origin.resolution {
        metadata.insert("modelspec.resolution".into(), format!("{side}x{side}"));
    }
    let fixed = [
        ("modelspec.sai_model_spec", "1.0.1".to_string()),
        ("modelspec.implementation", "https://github.com/Stability-AI/generative-models".to_string()),
        ("modelspec.title", origin.title.clone().unwrap_or_else(|| "seg4diff LoRA".to_string())),
        ("modelspec.hash_sha256", format!("0x{model}")),
        ("sshs_model_hash", model),
        ("sshs_legacy_hash", legacy),
    ];
    metadata.extend(fixed.map(|(key, value)| (key.to_string(), value)));
    weights::write(file, &tensors, &metadata)
}

fn no_name(module: &str) -> Error {
    Error::Failed(format!("cannot export {module}: kohya and ComfyUI have no name for an adapter of this module"))
}

/// One adapter for a fused projection: A's stacked, B's on the diagonal, zero rows for a part that has none.
///
/// Its rank is the sum of the ranks, so alpha grows with it: the scale stays.
fn fuse(parts: &[Option<&Lora>]) -> Result<Lora> {
    let present: Vec<&Lora> = parts.iter().flatten().copied().collect();
    let first = present.first().ok_or_else(|| Error::Failed("a fused adapter without parts".into()))?;
    let rank: usize = present.iter().map(|lora| lora.rank()).sum();
    let rows = first.up.dims()[0];
    // parts may differ in scale: what sets one apart from the first goes into its B
    let scale = first.scale();
    let mut blocks = Vec::new();
    let mut before = 0;
    for part in parts {
        blocks.push(match part {
            None => Tensor::zeros((rows, rank), first.up.dtype(), first.up.device())?,
            Some(lora) => {
                let up = if lora.scale() == scale { lora.up.clone() } else { (&lora.up * (lora.scale() / scale))? };
                let after = rank - before - lora.rank();
                let block = up.pad_with_zeros(1, before, after)?;
                before += lora.rank();
                block
            }
        });
    }
    let downs: Vec<&Tensor> = present.iter().map(|lora| &lora.down).collect();
    Ok(Lora { down: Tensor::cat(&downs, 0)?, up: Tensor::cat(&blocks, 0)?, alpha: scale * rank as f64 })
}

/// B of a text stream's modulation in the other tool's order of rows.
///
/// The last block modulates its text by a scale and a shift only, `out = 2·in`: diffusers stores the scale first,
/// the original checkpoint the shift. All other blocks have six parts in one order.
fn swap_last_norm(lora: &Lora) -> Result<Tensor> {
    let (rows, width) = (lora.up.dims()[0], lora.down.dims()[1]);
    if rows != 2 * width {
        return Ok(lora.up.clone());
    }
    Ok(Tensor::cat(&[lora.up.narrow(0, width, width)?, lora.up.narrow(0, 0, width)?], 0)?)
}

fn version(family: Family) -> &'static str {
    match family {
        Family::Sd3Medium => "medium",
        Family::Sd35Medium => "5-medium",
        Family::Sd35Large => "5-large",
    }
}

/// The keys with which kohya's trainer says what made a file (`train_util.py`), no dates and no names of machines.
fn training_metadata(adapter: &Adapter, origin: &Origin) -> BTreeMap<String, String> {
    let mut metadata = BTreeMap::from([
        ("ss_v2".to_string(), "False".to_string()),
        ("ss_network_module".into(), "networks.lora_sd3".into()),
        ("ss_network_args".into(), "{}".into()),
    ]);
    if let Some(largest) = adapter.values().max_by_key(|lora| lora.rank()) {
        metadata.insert("ss_network_dim".into(), largest.rank().to_string());
        metadata.insert("ss_network_alpha".into(), largest.alpha.to_string());
    }
    let known = [
        ("ss_base_model_version", origin.family.map(|f| version(f).to_string())),
        ("ss_resolution", origin.resolution.map(|side| format!("({side}, {side})"))),
        ("ss_steps", origin.steps.map(|n| n.to_string())),
        ("ss_seed", origin.seed.map(|n| n.to_string())),
    ];
    metadata.extend(known.into_iter().filter_map(|(key, value)| Some((key.to_string(), value?))));
    metadata
}

/// `sshs_model_hash` (SHA-256 of all tensors) and `sshs_legacy_hash` (of 64 KiB from 1 MiB on, eight digits).
fn hashes(file: &Path) -> Result<(String, String)> {
    let bytes = std::fs::read(file).map_err(|e| Error::file(file, e))?;
    let header = bytes.first_chunk::<8>().map_or(0, |length| u64::from_le_bytes(*length) as usize);
    let hash = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let legacy = bytes.get(1 << 20..).unwrap_or_default();
    let mut legacy = hash(&legacy[..legacy.len().min(1 << 16)]);
    legacy.truncate(8);
    Ok((hash(bytes.get(8 + header..).unwrap_or_default()), legacy))
}

/// Reads a file of kohya's names; a fused module comes apart into those of q, k and v that it changes.
pub(super) fn read(file: &Path, tensors: Tensors) -> Result<Adapter> {
    let expected = format!("({STEM}… with lora_down, lora_up and alpha)");
    let mut stems: BTreeMap<String, Parts> = BTreeMap::new();
    for (key, tensor) in tensors {
        let unknown = || unknown_key(file, &key, &expected);
        let (stem, what) = key.split_once('.').ok_or_else(unknown)?;
        if modules_of(stem).is_none() {
            return Err(unknown());
        }
        let parts = stems.entry(stem.to_string()).or_default();
        match what {
            "lora_down.weight" => parts.down = Some(tensor),
            "lora_up.weight" => parts.up = Some(tensor),
            "alpha" if tensor.elem_count() == 1 => {
                let alpha = tensor.flatten_all()?.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?;
                parts.alpha = alpha.first().copied();
            }
            _ => return Err(unknown()),
        }
    }
    let mut adapter = Adapter::new();
    for (stem, parts) in stems {
        let (block, modules) = modules_of(&stem).ok_or_else(|| unknown_key(file, &stem, &expected))?;
        let alpha = parts.alpha;
        let (down, up) = parts.pair(file, &stem)?;
        let mut fused = Lora { alpha: alpha.unwrap_or(down.dims()[0] as f64), down, up };
        let name = |within: &str| format!("transformer_blocks.{block}.{within}");
        if let [within] = modules {
            if stem.ends_with(CONTEXT_NORM) {
                fused.up = swap_last_norm(&fused)?;
            }
            adapter.insert(name(within), fused);
            continue;
        }
        let rows = fused.up.dims()[0];
        if !rows.is_multiple_of(modules.len()) {
            return Err(Error::file(file, format!("{stem}: {rows} rows do not divide into q, k and v")));
        }
        let rows = rows / modules.len();
        for (place, within) in modules.iter().enumerate() {
            if let Some(lora) = part(&fused, place * rows, rows)? {
                adapter.insert(name(within), lora);
            }
        }
    }
    Ok(adapter)
}

/// Block and modules of an original stem.
fn modules_of(stem: &str) -> Option<(usize, &'static [&'static str])> {
    let (block, within) = stem.strip_prefix(STEM)?.split_once('_')?;
    let (_, modules) = MODULES.iter().find(|(stem, _)| *stem == within)?;
    Some((block.parse().ok()?, modules))
}

/// The adapter of some rows of a fused module, without the ranks that do nothing there; none if nothing is left.
fn part(fused: &Lora, start: usize, rows: usize) -> Result<Option<Lora>> {
    let up = fused.up.narrow(0, start, rows)?;
    let largest = up.abs()?.max(0)?.to_vec1::<f32>()?;
    // not `> 0.0`: a value that is not a number must not vanish
    let used: Vec<u32> = (0..).zip(&largest).filter(|(_, v)| **v != 0.0).map(|(i, _)| i).collect();
    if used.is_empty() {
        return Ok(None);
    }
    let alpha = fused.scale() * used.len() as f64;
    let used = Tensor::new(used, up.device())?;
    Ok(Some(Lora { down: fused.down.index_select(&used, 0)?, up: up.index_select(&used, 1)?, alpha }))
}
