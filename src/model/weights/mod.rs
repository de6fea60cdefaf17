//! Safetensors in and out: named tensors read when they are asked for, and files written whole or not at all.
//!
//! Reading is strict: a missing, superfluous or misshapen tensor is an error that names file, tensor and shapes, as is a
//! number that is not finite.
mod blocks;
pub(crate) mod bounds;
pub mod files;
pub(crate) mod fingerprint;
mod finite;
mod folder;
mod fp8;
mod frozen;
mod gguf;
pub(crate) mod hub;
mod layout;
pub(crate) mod located;
pub mod naming;
pub(crate) mod one_file;
pub(crate) mod part;
mod part_config;
mod part_file;
pub(crate) mod required_files;
pub mod shapes;
pub(crate) mod shard_index;
pub(crate) mod sizes;
mod stored;

use crate::config::Quantization;
use crate::model::weights::located::{Located, require};
use crate::model::weights::naming::Naming;
use crate::model::weights::shapes::Shapes;
use crate::model::weights::shard_index::ShardIndex;
use crate::model::weights::stored::{Shard, Stored, StoredFormat};
use crate::system::error::{Error, Result};
use crate::system::patience::{self, Patient};
use crate::system::tensor_file;
pub use crate::system::tensor_file::{SafetensorsHeader, header};
use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Shape, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The tensors of one model part, from one file or several shards.
///
/// They are read, not mapped: mapped pages would count as memory beside the tensors made of them.
pub struct Weights {
    shards: Vec<Arc<Shard>>,
    tensors: HashMap<String, Stored>,
    /// What errors about the part as a whole name: its file, or the index of its shards.
    path: PathBuf,
    dtype: DType,
    /// How the weights of blocks are kept; none for dense.
    quantize: Option<Quantization>,
    /// Whether it was said that some rows are no whole blocks of that.
    said_other: AtomicBool,
    device: Device,
    used: Mutex<BTreeSet<String>>,
}

/// What scales of eight-bit weights are called, ComfyUI's old name and its new one.
const SCALES: [&str; 2] = ["scale_weight", "weight_scale"];

/// What ComfyUI stores beside them: how a file or a module is quantised, and scales of inputs, for products in eight bits.
const MARKS: [&str; 4] = ["scaled_fp8", "comfy_quant", "scale_input", "input_scale"];

/// What a text encoder's file holds besides: CLIP's temperature, T5's tokenizer.
const EXTRAS: [&str; 2] = ["logit_scale", "spiece_model"];

impl Weights {
    /// Opens `FOLDER/STEM.safetensors`, or the shards that `FOLDER/STEM.safetensors.index.json` lists, or where neither is
    /// there, the only variant (`STEM.fp16.safetensors`).
    ///
    /// Tensors come out as `dtype` on `device`.
    pub fn open_part(folder: &Path, stem: &str, dtype: DType, device: &Device) -> Result<Self> {
        Self::open_located(&require(folder, stem, None)?, dtype, device)
    }

    /// Opens the files that were found.
    pub(crate) fn open_located(located: &Located, dtype: DType, device: &Device) -> Result<Self> {
        let Located { index, files } = located;
        let Some(index) = index else {
            let path = files.first().cloned().unwrap_or_default();
            return Self::open(&path, files, dtype, device);
        };
        let weights = Self::open(index, files, dtype, device)?;
        for (name, shard) in &ShardIndex::read(index)?.weight_map {
            if weights.shard_of(name).is_none_or(|found| found.path != index.with_file_name(shard)) {
                return Err(Error::file(index, format!("tensor {name} is not in {shard}, where the index puts it")));
            }
        }
        Ok(weights)
    }

    /// Opens the given safetensors or GGUF files as one set of tensors; `path` is what errors name.
    pub fn open(path: &Path, files: &[PathBuf], dtype: DType, device: &Device) -> Result<Self> {
        let (mut shards, mut tensors) = (vec![], HashMap::<String, Stored>::new());
        for file in files {
            let number = shards.len();
            let found: HashMap<String, Stored> = match gguf::is_named_so(file) {
                true => gguf::tensors(file, number)?.0,
                false => {
                    let header = header(file)?;
                    let stored = |(name, info)| (name, Stored::plain(number, &info, header.data));
                    header.tensors.into_iter().map(stored).collect()
                }
            };
            for (name, stored) in found {
                if let Some(other) = tensors.insert(name.clone(), stored) {
                    let other = shards.get(other.shard).map_or(file, |shard: &Arc<Shard>| &shard.path);
                    return Err(Error::file(file, format!("tensor {name} is in {} too", other.display())));
                }
            }
            let Patient(opened) = patience::open(file).map_err(|e| Error::file(file, e))?;
            shards.push(Arc::new(Shard { path: file.clone(), file: opened }));
        }
        let tensors = scaled(tensors).map_err(|problem| Error::file(path, problem))?;
        Ok(Self::of(path, shards, tensors, dtype, device))
    }

    fn of(
        path: &Path,
        shards: Vec<Arc<Shard>>,
        tensors: HashMap<String, Stored>,
        dtype: DType,
        device: &Device,
    ) -> Self {
        Self {
            shards,
            tensors,
            path: path.to_path_buf(),
            dtype,
            quantize: None,
            said_other: AtomicBool::new(false),
            device: device.clone(),
            used: Mutex::default(),
        }
    }

    /// A network among these tensors: those whose names begin with `prefix`, and with none of `others`, without it and under
    /// diffusers' names. They come out as `dtype` on `device`.
    ///
    /// # Errors
    /// A tensor is not as the `naming` says; names it.
    pub(crate) fn part(
        &self,
        (prefix, others): (&str, &[&str]),
        naming: &Naming,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let inside = self.tensors.iter().filter(|(name, _)| !others.iter().any(|other| name.starts_with(other)));
        let inside = inside.filter_map(|(name, stored)| Some((name.strip_prefix(prefix)?, stored)));
        let inside = inside.filter(|(name, _)| !EXTRAS.contains(&parameter(name)));
        let tensors = inside.map(|(name, stored)| (name.to_string(), stored.clone())).collect();
        let tensors = naming.present(tensors).map_err(|problem| Error::file(&self.path, problem))?;
        Ok(Self::of(&self.path, self.shards.clone(), tensors, dtype, device))
    }

    /// The same tensors, which come out as `dtype` on `device`, none of them used so far.
    pub(crate) fn on(&self, dtype: DType, device: &Device) -> Self {
        Self::of(&self.path, self.shards.clone(), self.tensors.clone(), dtype, device)
    }

    /// Puts the identity matrix of `size` rows in the place of the tensor `name`, whether there is one or not.
    pub(crate) fn set_identity(&mut self, name: &str, size: usize) {
        self.tensors.insert(name.to_string(), Stored::identity(size));
    }

    /// Every tensor's shape.
    pub(crate) fn shapes(&self) -> Shapes {
        Shapes(self.tensors.iter().map(|(name, stored)| (name.clone(), stored.shape.clone())).collect())
    }

    /// The device that tensors are read to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The file or shard index that the tensors come from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a tensor `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The tensor `name`, which must have this shape.
    pub fn get(&self, name: &str, shape: impl Into<Shape>) -> Result<Tensor> {
        self.get_as(name, &shape.into(), self.dtype, &self.device)
    }

    /// The shape of the tensor `name`, if there is one.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|stored| stored.shape.as_slice())
    }

    fn get_as(&self, name: &str, shape: &Shape, dtype: DType, device: &Device) -> Result<Tensor> {
        // Before it is read: a configuration may say anything.
        if let Some(found) = self.shape(name).filter(|found| *found != shape.dims()) {
            let problem = format!("tensor {name} has shape {found:?}, expected {shape:?}");
            return Err(Error::file(self.file_of(name), problem));
        }
        let found = self.tensors.get(name).and_then(|stored| Some((stored, self.shards.get(stored.shard)?)));
        let Some((stored, shard)) = found else {
            return Err(Error::file(&self.path, format!("tensor {name} is missing (expected shape {shape:?})")));
        };
        self.used().insert(name.to_string());
        let numbers = |scale: &Stored| -> Result<Vec<f32>> {
            let shard = self.shards.get(scale.shard).unwrap_or(shard);
            let tensor = shard.read(&format!("{name}'s scale"), scale, None, Some(DType::F32), &Device::Cpu)?;
            Ok(tensor.flatten_all()?.to_vec1()?)
        };
        let scale = stored.scale.as_deref().map(numbers).transpose()?;
        shard.read(name, stored, scale.as_deref(), Some(dtype), device)
    }

    /// The tensor `name` in the blocks of few bits that it is stored in; none where it is not.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn stored_quantised(&self, name: &str) -> Result<Option<QTensor>> {
        let stored = self.tensors.get(name).filter(|stored| matches!(stored.format, StoredFormat::Blocks(_)));
        let (Some(stored), Some(shard)) = (stored, self.shard_of(name)) else { return Ok(None) };
        self.used().insert(name.to_string());
        shard.quantised(name, stored, &self.device).map(Some)
    }

    fn shard_of(&self, name: &str) -> Option<&Shard> {
        self.shards.get(self.tensors.get(name)?.shard).map(Arc::as_ref)
    }

    /// The file that the tensor `name` is in, for errors; that of the whole part where there is no such.
    fn file_of(&self, name: &str) -> &Path {
        self.shard_of(name).map_or(&self.path, |shard| &shard.path)
    }

    fn used(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks a tensor that is rightly in the file but not needed, such as a stored position index.
    pub fn ignore(&self, name: &str) {
        self.used().insert(name.to_string());
    }

    /// Marks all tensors whose names begin so, as [`Self::ignore`] does one.
    pub fn ignore_all(&self, prefix: &str) {
        self.used().extend(self.tensors.keys().filter(|name| name.starts_with(prefix)).cloned());
    }

    /// Fails if the file holds tensors that nothing asked for: then it is another model than its config says.
    pub fn finish(&self) -> Result<()> {
        let used = self.used();
        let extra: Vec<&str> = self.names().into_iter().filter(|n| !used.contains(*n)).collect();
        let [first, others @ ..] = &extra[..] else { return Ok(()) };
        let shape = self.shape(first).unwrap_or_default();
        let more = if others.is_empty() { String::new() } else { format!(", and {} more", others.len()) };
        let problem =
            format!("tensor {first} {shape:?} is not part of the model that its configuration describes{more}");
        Err(Error::file(self.file_of(first), problem))
    }
}

/// The last part of a tensor's name.
fn parameter(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(_, parameter)| parameter)
}

/// `tensors` without what is stored beside eight-bit weights; those have their scales.
///
/// # Errors
/// A scale is of no tensor.
fn scaled(tensors: HashMap<String, Stored>) -> Result<HashMap<String, Stored>, String> {
    let numbers = tensors.into_iter().filter(|(name, _)| !MARKS.contains(&parameter(name)));
    let (scales, weights): (Vec<_>, Vec<_>) = numbers.partition(|(name, _)| SCALES.contains(&parameter(name)));
    let mut weights: HashMap<String, Stored> = weights.into_iter().collect();
    for (name, scale) in scales {
        let weight = name.rsplit_once('.').and_then(|(module, _)| weights.get_mut(&format!("{module}.weight")));
        let weight = weight.ok_or_else(|| format!("tensor {name} is the scale of no tensor"))?;
        weight.scale = Some(Box::new(scale));
    }
    Ok(weights)
}

/// Reads every tensor of a safetensors file as it is stored, to the CPU.
pub fn read_all(file: &Path) -> Result<BTreeMap<String, Tensor>> {
    let SafetensorsHeader { tensors, data, .. } = header(file)?;
    let Patient(opened) = patience::open(file).map_err(|e| Error::file(file, e))?;
    let shard = Shard { path: file.to_path_buf(), file: opened };
    let read = |(name, info): (String, TensorInfo)| {
        let tensor = shard.read(&name, &Stored::plain(0, &info, data), None, None, &Device::Cpu)?;
        Ok((name, tensor))
    };
    tensors.into_iter().map(read).collect()
}

/// Writes tensors (f32, f16 or bf16; in name order) as safetensors, the same bytes for the same content.
///
/// The file is whole or absent: it is written aside, synced and renamed.
pub fn write(file: &Path, tensors: &BTreeMap<String, Tensor>, metadata: &BTreeMap<String, String>) -> Result<()> {
    let described = tensors.iter().map(|(name, tensor)| {
        let dtype = match tensor.dtype() {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            other => return Err(Error::file(file, format!("tensor {name}: cannot write {other:?}"))),
        };
        Ok((name.clone(), dtype, tensor.dims().to_vec()))
    });
    tensor_file::write(file, described.collect::<Result<_>>()?, metadata, |out| {
        for tensor in tensors.values() {
            out.write_all(&little_endian(tensor).map_err(std::io::Error::other)?)?;
        }
        Ok(())
    })
}

fn little_endian(tensor: &Tensor) -> candle_core::Result<Vec<u8>> {
    let flat = tensor.flatten_all()?;
    Ok(match tensor.dtype() {
        DType::F16 => flat.to_vec1::<half::f16>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::BF16 => flat.to_vec1::<half::bf16>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
        _ => flat.to_vec1::<f32>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
    })
}
