//! Adapter files as other tools load them: written, read, and every export read back and compared.
//!
//! Names and scales follow diffusers (`loaders/lora_pipeline.py`), PEFT (`utils/save_and_load.py`) and
//! kohya-ss/sd-scripts (`networks/lora_sd3.py`), whose fused names ComfyUI takes too.
mod dotted;
mod kohya;
mod prefixes;
mod reader;

pub use crate::model::adapters::stored::{Format, Origin};
use crate::model::adapters::{AdapterFiles, Adapters, KINDS};
use crate::model::weights;
use crate::system::error::{Error, Result};
use crate::system::output_folder::OutputFolder;
use crate::system::paths::{self, is_file};
use crate::system::whole_file::{Aside, folder_of, remove_if_there, sweep_beside, sync};
use candle_core::{DType, Tensor};
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The file of a training's checkpoint that holds the adapter, the score head and the prompt.
pub const CHECKPOINT_FILE: &str = "adapter.safetensors";

/// Largest relative difference (Frobenius norm) between a module's ΔW and that of its file read back.
const TOLERANCE: f64 = 1e-5;

/// Writes `adapters` and makes sure of it: what was written is read back, and every module's ΔW compared.
///
/// `out` is the file, or a folder that gets the format's usual file name; for PEFT anything but `*.safetensors` is
/// the folder, and `adapter_config.json` lies beside the tensors. Only a file that passed is put there. Returns the
/// path of the tensors' file.
///
/// # Errors
/// A module that the format has no name for, a file that cannot be written, or a ΔW that differs by more than
/// 1e-5 (such as one that is not finite).
pub fn export(adapters: &Adapters, format: Format, out: &Path, origin: &Origin) -> Result<PathBuf> {
    if adapters.is_empty() {
        return Err(Error::file(out, "cannot export: the adapter has no modules"));
    }
    for (name, adapter) in adapters {
        for values in adapter.parameters() {
            if !is_finite(values)? {
                return Err(Error::file(out, format!("cannot export: {name} holds numbers that are not finite")));
            }
        }
    }
    let is_file_name = out.extension().is_some_and(|e| e == "safetensors");
    let is_folder = paths::is_folder(out)? || (format == Format::Peft && !is_file_name);
    if is_folder && is_file(out)? {
        return Err(Error::Usage(format!("{}: the peft format needs a folder, this is a file", out.display())));
    }
    let target = if is_folder { out.join(format.file_name()) } else { out.to_path_buf() };
    let folder = folder_of(&target);
    let _held = is_folder.then(|| OutputFolder::hold(folder)).transpose()?;
    let failed = |e: std::io::Error| Error::file(folder, format!("cannot write: {e}"));
    std::fs::create_dir_all(folder).map_err(failed)?;
    sweep_beside(&target)?;
    let aside = Aside::beside(&target).map_err(failed)?;
    let written = aside.path().join(format.file_name());
    match format {
        Format::Diffusers => dotted::write(adapters, format, &written)?,
        Format::Peft => dotted::write_peft(adapters, aside.path())?,
        Format::Comfyui => kohya::write(adapters, &written, origin)?,
    }
    let kinds: Vec<_> = adapters.values().take(1).map(|adapter| adapter.files()).collect();
    let back = read_kinds(&written, &kinds)?;
    same_effect(adapters, &back).map_err(|problem| {
        Error::file(&target, format!("not written, it would not hold what was trained: {problem}"))
    })?;
    let put = |name: &str, to: &Path| {
        std::fs::rename(aside.path().join(name), to).map_err(|e| Error::file(to, format!("cannot write: {e}")))
    };
    if format == Format::Peft {
        // Two files cannot come at once: between them there are no tensors rather than those of another configuration.
        remove_if_there(&target)?;
        put(dotted::PEFT_CONFIG, &folder.join(dotted::PEFT_CONFIG))?;
    }
    put(format.file_name(), &target)?;
    sync(folder).map_err(failed)?;
    Ok(target)
}

fn is_finite(values: &Tensor) -> Result<bool> {
    let values = values.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.iter().all(|value| value.is_finite()))
}

/// Reads an adapter of any tool whose names are known (`reader.rs` lists them): a file, or a folder that holds one. What adapts text
/// encoders is left out, with a warning.
///
/// # Errors
/// No such file; keys of no known or of more than one style; another kind of adapter, by name; nothing for the
/// transformer; a pair that lacks one side; shapes that do not fit each other.
pub fn read(path: &Path) -> Result<Adapters> {
    read_kinds(path, &KINDS)
}

/// [`read`], of these kinds of adapters.
pub fn read_kinds(path: &Path, kinds: &[&'static dyn AdapterFiles]) -> Result<Adapters> {
    let file = tensors_of(path)?;
    let metadata = weights::header(&file).map_err(|problem| no_pickle(&file, problem))?.metadata;
    let tensors = weights::read_all(&file)?;
    if tensors.is_empty() {
        return Err(Error::file(&file, "holds no tensors"));
    }
    reader::read(&file, tensors, |prefix| dotted::config(&file, prefix, &metadata), kinds)
}

/// The file that holds the tensors of the adapter that `path`, a file or folder, is.
///
/// # Errors
/// The folder holds none, or several.
pub fn tensors_of(path: &Path) -> Result<PathBuf> {
    if !paths::is_folder(path)? {
        return Ok(path.to_path_buf());
    }
    let names = [Format::Peft, Format::Diffusers, Format::Comfyui].map(Format::file_name);
    let mut found = vec![];
    for file in names.map(|name| path.join(name)) {
        if is_file(&file)? {
            found.push(file);
        }
    }
    match found.as_slice() {
        [file] => Ok(file.clone()),
        [] => Err(Error::file(path, format!("no adapter: expected {}", names.join(", ")))),
        _ => Err(Error::file(path, "holds more than one adapter file: name the one that is meant")),
    }
}

/// `problem` with `file` as safetensors, or what is known better of it: it is one of torch's pickles.
pub fn no_pickle(file: &Path, problem: Error) -> Error {
    let mut start = [0; 4];
    let read = std::fs::File::open(file).and_then(|mut file| file.read_exact(&mut start));
    match (read, start) {
        (Ok(()), [b'P', b'K', 3, 4] | [0x80, ..]) => Error::file(
            file,
            "is a file of torch.save, and nothing is unpickled here: convert it to safetensors once, as the README says \
             under \"The published adapters\"",
        ),
        _ => problem,
    }
}

/// Says which layer has another ΔW in `back` than in `adapters`; one that is missing counts as zero.
fn same_effect(adapters: &Adapters, back: &Adapters) -> std::result::Result<(), String> {
    let layers: BTreeSet<&String> = adapters.keys().chain(back.keys()).collect();
    for layer in layers {
        let compare = || -> candle_core::Result<(f64, f64)> {
            let delta = |of: &Adapters| of.get(layer).map(|adapter| adapter.delta()).transpose();
            match (delta(adapters)?, delta(back)?) {
                (Some(a), Some(b)) => Ok((norm(&(&a - &b)?)?, norm(&a)?)),
                (Some(a), None) => Ok((norm(&a)?, norm(&a)?)),
                (None, Some(b)) => Ok((norm(&b)?, 0.0)),
                (None, None) => Ok((0.0, 0.0)),
            }
        };
        let (difference, size) = compare().map_err(|e| format!("{layer}: {e}"))?;
        if !difference.is_finite() || difference > TOLERANCE * size {
            return Err(format!("ΔW of {layer} read back differs by {difference:e} (its norm is {size:e})"));
        }
    }
    Ok(())
}

/// Frobenius norm, summed in f64.
fn norm(tensor: &Tensor) -> candle_core::Result<f64> {
    tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>().map(f64::sqrt)
}
