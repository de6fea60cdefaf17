//! Safetensors in and out: named tensors read when they are asked for, and files written whole or not at all.
//!
//! Reading is strict: a missing, superfluous or misshapen tensor is an error that names file, tensor and shapes, as is a
//! number that is not finite.
pub(crate) mod bounds;
pub mod files;
pub(crate) mod fingerprint;
mod finite;
pub(crate) mod located;
pub(crate) mod required_files;
pub(crate) mod shard_index;
pub(crate) mod sizes;

use crate::model::weights::finite::first_not_finite;
use crate::model::weights::located::{Located, require};
use crate::model::weights::shard_index::ShardIndex;
use crate::system::error::{Error, Result};
use crate::system::guard::guarded;
use crate::system::limits;
use crate::system::patience::{self, Patient, patiently};
use crate::system::platform::read_exact_at;
use crate::system::tensor_file;
pub use crate::system::tensor_file::{Header, header};
use candle_core::{DType, Device, Shape, Tensor};
use safetensors::Dtype;
use safetensors::tensor::{TensorInfo, TensorView};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes that are read at a time.
const PART: usize = 1 << 20;

/// The tensors of one model part, from one file or several shards.
///
/// They are read, not mapped: mapped pages would count as memory beside the tensors made of them.
pub struct Weights {
    shards: Vec<Shard>,
    tensors: HashMap<String, Stored>,
    /// What errors about the part as a whole name: its file, or the index of its shards.
    path: PathBuf,
    dtype: DType,
    device: Device,
    used: Mutex<BTreeSet<String>>,
}

struct Shard {
    path: PathBuf,
    file: File,
}

impl Shard {
    /// Reads a tensor, as `kept` or as it is stored.
    ///
    /// # Errors
    /// The file cannot be read, or a number is not finite; the tensor and the number are named.
    fn read(&self, name: &str, stored: &Stored, kept: Option<DType>, device: &Device) -> Result<Tensor> {
        let Stored { info, start, .. } = stored;
        let failed = |problem: String| Error::file(&self.path, format!("tensor {name}: {problem}"));
        let length = info.data_offsets.1 - info.data_offsets.0;
        let mut data = limits::buffer(length).map_err(|e| failed(e.to_string()))?;
        // A part at a time, which is looked at while the processor still has it at hand.
        for (index, part) in data.chunks_mut(PART).enumerate() {
            let first = index * PART;
            let read = patiently(|| read_exact_at(&self.file, part, start + first as u64));
            read.map_err(|e| failed(e.to_string()))?;
            if let Some((place, value)) = first_not_finite(part, info.dtype, kept.unwrap_or(DType::F64)) {
                let place = first * 8 / info.dtype.bitsize() + place;
                return Err(failed(match kept {
                    Some(kept) if value.is_finite() => {
                        format!("value {place} is {value}, too large for {}", kept.as_str())
                    }
                    _ => format!("value {place} is {value}, not finite"),
                }));
            }
        }
        let load = || {
            let view = TensorView::new(info.dtype, info.shape.clone(), &data).map_err(|e| e.to_string())?;
            candle_core::safetensors::Load::load(&view, device).map_err(|e| e.to_string())
        };
        let tensor = guarded(load).map_err(failed)?;
        match kept {
            Some(kept) => tensor.to_dtype(kept).map_err(|e| failed(e.to_string())),
            None => Ok(tensor),
        }
    }
}

/// Where a tensor lies.
struct Stored {
    shard: usize,
    info: TensorInfo,
    /// First byte in the file.
    start: u64,
}

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

    /// Opens the given safetensors files as one set of tensors; `path` is what errors name.
    pub fn open(path: &Path, files: &[PathBuf], dtype: DType, device: &Device) -> Result<Self> {
        let (mut shards, mut tensors) = (vec![], HashMap::<String, Stored>::new());
        for file in files {
            let header = header(file)?;
            for (name, info) in header.tensors {
                let start = header.data + info.data_offsets.0 as u64;
                if let Some(other) = tensors.insert(name.clone(), Stored { shard: shards.len(), info, start }) {
                    let other = shards.get(other.shard).map_or(file, |shard: &Shard| &shard.path);
                    return Err(Error::file(file, format!("tensor {name} is in {} too", other.display())));
                }
            }
            let Patient(opened) = patience::open(file).map_err(|e| Error::file(file, e))?;
            shards.push(Shard { path: file.clone(), file: opened });
        }
        Ok(Self { shards, tensors, path: path.to_path_buf(), dtype, device: device.clone(), used: Mutex::default() })
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
        let shape = shape.into();
        // Before it is read: a configuration may say anything.
        if let Some(found) = self.tensors.get(name).map(|stored| &stored.info.shape)
            && found != shape.dims()
        {
            return Err(Error::file(
                self.shard_of(name).map_or(&self.path, |shard| &shard.path),
                format!("tensor {name} has shape {found:?}, expected {shape:?}"),
            ));
        }
        self.get_any(name, &shape)
    }

    /// The tensor `name` in whatever shape it has; `expected` serves the message when it is missing.
    pub fn get_any(&self, name: &str, expected: &Shape) -> Result<Tensor> {
        let found = self.tensors.get(name).and_then(|stored| Some((stored, self.shards.get(stored.shard)?)));
        let Some((stored, shard)) = found else {
            return Err(Error::file(&self.path, format!("tensor {name} is missing (expected shape {expected:?})")));
        };
        self.used().insert(name.to_string());
        shard.read(name, stored, Some(self.dtype), &self.device)
    }

    fn shard_of(&self, name: &str) -> Option<&Shard> {
        self.shards.get(self.tensors.get(name)?.shard)
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
        match extra.first() {
            None => Ok(()),
            Some(first) => {
                let shape = self.tensors.get(*first).map(|stored| stored.info.shape.clone()).unwrap_or_default();
                let more = match extra.len() - 1 {
                    0 => String::new(),
                    n => format!(", and {n} more"),
                };
                Err(Error::file(
                    self.shard_of(first).map_or(&self.path, |shard| &shard.path),
                    format!("tensor {first} {shape:?} is not part of the model that config.json describes{more}"),
                ))
            }
        }
    }
}

/// Reads every tensor of a safetensors file as it is stored, to the CPU.
pub fn read_all(file: &Path) -> Result<BTreeMap<String, Tensor>> {
    let Header { tensors, data, .. } = header(file)?;
    let Patient(opened) = patience::open(file).map_err(|e| Error::file(file, e))?;
    let shard = Shard { path: file.to_path_buf(), file: opened };
    let read = |(name, info): (String, TensorInfo)| {
        let start = data + info.data_offsets.0 as u64;
        let tensor = shard.read(&name, &Stored { shard: 0, info, start }, None, &Device::Cpu)?;
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
