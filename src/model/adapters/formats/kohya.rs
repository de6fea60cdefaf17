//! The names of kohya's trainer, which ComfyUI takes too: those of the original checkpoint, where some layers are one.
use super::prefixes::{Tensors, unknown_key};
use crate::model::adapters::adapter::{Adapter, Adapters};
use crate::model::adapters::stored::{Format, Origin};
use crate::model::families::known::PIPELINES;
use crate::model::families::names::KohyaNames;
use crate::model::weights;
use crate::model::weights::fingerprint::sha256_of;
use crate::model::weights::naming::{ModuleNames, Shares, rows_of};
use crate::system::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Before the names of the transformer's layers.
const PREFIX: &str = "lora_unet_";

/// All lists of blocks, with the names of the family that has them.
fn lists() -> impl Iterator<Item = (&'static KohyaNames, &'static ModuleNames)> {
    PIPELINES.into_iter().flat_map(|names| names.kohya.blocks.iter().map(|blocks| (names.kohya, blocks)))
}

/// What stands before a block's number in kohya's names.
fn stem_of(blocks: &ModuleNames) -> String {
    format!("{PREFIX}{}", underscored(before_number(blocks.original)))
}

/// What stands before the number in the name of a list of blocks, such as `transformer_blocks.*`.
fn before_number(blocks: &'static str) -> &'static str {
    blocks.trim_end_matches('*')
}

fn underscored(name: &str) -> String {
    name.replace('.', "_")
}

/// A layer of the original checkpoint, gathered from those of diffusers.
struct Fused<'a> {
    names: &'static KohyaNames,
    shares: Shares,
    parts: Vec<Option<&'a dyn Adapter>>,
}

impl Fused<'_> {
    /// The adapter of the whole layer.
    fn adapter(&self) -> Result<Box<dyn Adapter>> {
        let present = self.parts.iter().zip(self.shares).filter_map(|(part, share)| Some(((*part)?, share)));
        let Some((first, (within, share))) = present.clone().next() else {
            return Err(Error::Failed("a fused adapter without parts".into()));
        };
        let (inner, outer) = first.sizes();
        if let [_] = self.shares {
            return match (self.names.swaps_halves)(within, (inner, outer)) {
                true => swapped(first),
                false => first.outputs(std::slice::from_ref(&(0..outer))),
            };
        }
        let parts: Vec<_> =
            self.parts.iter().zip(self.shares).map(|(part, (_, s))| (outer / share * s, *part)).collect();
        first.files().fuse(&parts)
    }
}

/// The adapter of a layer whose two halves of outputs lie the other way round.
fn swapped(adapter: &dyn Adapter) -> Result<Box<dyn Adapter>> {
    let (_, outer) = adapter.sizes();
    adapter.outputs(&[outer / 2..outer, 0..outer / 2])
}

/// Writes `lora_unet_…` with `.lora_down.weight`, `.lora_up.weight` and `.alpha`, or what else the adapters' kind has.
pub(super) fn write(adapters: &Adapters, file: &Path, origin: &Origin) -> Result<()> {
    let names = names_of(adapters, origin)?;
    let mut stems: BTreeMap<String, Fused> = BTreeMap::new();
    for (layer, adapter) in adapters {
        let (stem, shares, at) = original(names, layer).ok_or_else(|| no_name(layer))?;
        let fused = stems.entry(stem).or_insert_with(|| Fused { names, shares, parts: vec![None; shares.len()] });
        fused.parts[at] = Some(adapter.as_ref());
    }
    let mut metadata =
        BTreeMap::from([("ss_v2".to_string(), "False".to_string()), ("ss_network_args".into(), "{}".into())]);
    let mut tensors = Tensors::new();
    metadata.insert("ss_network_module".into(), names.network_module.into());
    for (stem, fused) in stems {
        let stored = fused.adapter()?.stored(Format::Comfyui)?.into_iter();
        tensors.extend(stored.map(|(suffix, tensor)| (format!("{stem}.{suffix}"), tensor)));
    }
    metadata.extend(training_metadata(adapters, origin));
    // as kohya does: the hashes are those of the file with its training metadata alone
    weights::write(file, &tensors, &metadata)?;
    let (model, legacy) = hashes(file)?;
    if let Some(release) = origin.release {
        metadata.insert("modelspec.architecture".into(), format!("{}/lora", release.architecture));
    }
    if let Some(side) = origin.resolution {
        metadata.insert("modelspec.resolution".into(), format!("{side}x{side}"));
    }
    let fixed = [
        ("modelspec.sai_model_spec", "1.0.1".to_string()),
        ("modelspec.implementation", names.implementation.to_string()),
        ("modelspec.title", origin.title.clone().unwrap_or_else(|| "seg4diff LoRA".to_string())),
        ("modelspec.hash_sha256", format!("0x{model}")),
        ("sshs_model_hash", model),
        ("sshs_legacy_hash", legacy),
    ];
    metadata.extend(fixed.map(|(key, value)| (key.to_string(), value)));
    weights::write(file, &tensors, &metadata)
}

fn no_name(layer: &str) -> Error {
    Error::Failed(format!("cannot export {layer}: kohya and ComfyUI have no name for an adapter of this module"))
}

/// The names of the family that has all these layers: of several that have, that of the base model where it is known, else
/// the first.
fn names_of(adapters: &Adapters, origin: &Origin) -> Result<&'static KohyaNames> {
    let is_origin = |names: &&KohyaNames| {
        origin.release.is_some_and(|release| release.architecture.starts_with(names.architecture))
    };
    let missing = |names: &KohyaNames| adapters.keys().find(|layer| original(names, layer).is_none());
    let all = || PIPELINES.into_iter().map(|pipeline| pipeline.kohya);
    let having_all = || all().filter(|names| missing(names).is_none());
    let found = having_all().find(is_origin).or_else(|| having_all().next());
    found.ok_or_else(|| {
        let nearest = all().find(is_origin).or_else(|| all().next());
        nearest
            .and_then(missing)
            .map_or_else(|| Error::Failed("an adapter without layers".into()), |layer| no_name(layer))
    })
}

/// Of a layer in diffusers' names: the stem of the original one, that one's parts, and its place among them.
fn original(names: &KohyaNames, layer: &str) -> Option<(String, Shares, usize)> {
    names.blocks.iter().find_map(|blocks| {
        let (block, within) = layer.strip_prefix(before_number(blocks.diffusers))?.split_once('.')?;
        block.parse::<usize>().ok()?;
        blocks.layers.iter().find_map(|(stem, shares)| {
            let at = shares.iter().position(|(part, _)| *part == within)?;
            Some((format!("{}{block}_{}", stem_of(blocks), underscored(stem)), *shares, at))
        })
    })
}

/// Of a layer's name in the original checkpoint: the name of the block in diffusers, with a dot, and the parts of the
/// layer. Of several families that have such a layer, the first that has it in the sizes of `adapter`, else the first.
fn parts_of(layer: &str, adapter: Option<&dyn Adapter>) -> Option<(String, &'static KohyaNames, Shares)> {
    let stem = format!("{PREFIX}{}", underscored(layer));
    let found = |(names, blocks): (&'static KohyaNames, &'static ModuleNames)| {
        let (block, within) = stem.strip_prefix(&stem_of(blocks))?.split_once('_')?;
        let (original, shares) = blocks.layers.iter().find(|(stem, _)| underscored(stem) == within)?;
        let fits = adapter.is_none_or(|adapter| (names.fits)(original, adapter.sizes()));
        Some((fits, (format!("{}{}.", before_number(blocks.diffusers), block.parse::<usize>().ok()?), names, *shares)))
    };
    let all = || lists().filter_map(found);
    all().find(|(fits, _)| *fits).or_else(|| all().next()).map(|(_, parts)| parts)
}

/// The keys with which kohya's trainer says what made a file (`train_util.py`), no dates and no names of machines.
fn training_metadata(adapters: &Adapters, origin: &Origin) -> BTreeMap<String, String> {
    let known = [
        ("ss_base_model_version", origin.release.map(|release| release.base_model_version.to_string())),
        ("ss_resolution", origin.resolution.map(|side| format!("({side}, {side})"))),
        ("ss_steps", origin.steps.map(|n| n.to_string())),
        ("ss_seed", origin.seed.map(|n| n.to_string())),
    ];
    let known = known.into_iter().filter_map(|(key, value)| Some((key, value?)));
    let of_kind = adapters.values().next().map_or(vec![], |first| first.files().kohya_metadata(adapters));
    known.chain(of_kind).map(|(key, value)| (key.to_string(), value)).collect()
}

/// `sshs_model_hash` (SHA-256 of all tensors) and `sshs_legacy_hash` (of 64 KiB from 1 MiB on, eight digits).
fn hashes(file: &Path) -> Result<(String, String)> {
    let bytes = std::fs::read(file).map_err(|e| Error::file(file, e))?;
    let header = bytes.first_chunk::<8>().map_or(0, |length| u64::from_le_bytes(*length) as usize);
    let legacy = bytes.get(1 << 20..).unwrap_or_default();
    let mut legacy = sha256_of(&legacy[..legacy.len().min(1 << 16)]);
    legacy.truncate(8);
    Ok((sha256_of(bytes.get(8 + header..).unwrap_or_default()), legacy))
}

/// Whether diffusers or the original checkpoint has a layer of this name, with dots or underscores.
pub(super) fn is_known(layer: &str) -> bool {
    of_diffusers(layer).is_some() || parts_of(layer, None).is_some()
}

/// The adapters, by diffusers' names, of a layer of either name: a fused one of the original checkpoint comes apart into
/// those that it changes.
pub(super) fn split(file: &Path, layer: &str, adapter: Box<dyn Adapter>) -> Result<Adapters> {
    if let Some(name) = of_diffusers(layer) {
        return Ok(Adapters::from([(name, adapter)]));
    }
    let (block, names, shares) = parts_of(layer, Some(adapter.as_ref())).ok_or_else(|| unknown_key(file, layer))?;
    if let [(within, _)] = shares {
        let swaps = (names.swaps_halves)(within, adapter.sizes());
        let adapter = if swaps { swapped(adapter.as_ref())? } else { adapter };
        return Ok(Adapters::from([(format!("{block}{within}"), adapter)]));
    }
    let rows = rows_of(shares, adapter.sizes().1);
    let mut parts = Adapters::new();
    for (within, range) in rows.map_err(|problem| Error::file(file, format!("{layer}: {problem}")))? {
        if let Some(part) = adapter.outputs(&[range])?.pruned()? {
            parts.insert(format!("{block}{within}"), part);
        }
    }
    Ok(parts)
}

/// diffusers' name of a layer that is named so but for underscores.
fn of_diffusers(layer: &str) -> Option<String> {
    let layer = underscored(layer);
    lists().find_map(|(_, blocks)| {
        let before = before_number(blocks.diffusers);
        let (block, within) = layer.strip_prefix(&underscored(before))?.split_once('_')?;
        let layers = blocks.layers.iter().flat_map(|(_, shares)| shares.iter().map(|(part, _)| *part));
        let part = { layers }.find(|part| underscored(part) == within)?;
        Some(format!("{before}{}.{part}", block.parse::<usize>().ok()?))
    })
}
