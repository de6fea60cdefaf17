//! Safetensors in and out: named tensors read from memory-mapped files, and files written whole or not at all.
//!
//! Reading is strict: a missing, superfluous or misshapen tensor is an error that names file, tensor and shapes.
use crate::error::{Error, Result};
use crate::tensor_file;
pub use crate::tensor_file::{Header, header};
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Shape, Tensor};
use safetensors::Dtype;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The tensors of one model part, from one file or several shards.
pub struct Weights {
    tensors: MmapedSafetensors,
    /// Which file holds a tensor.
    files: HashMap<String, PathBuf>,
    /// What errors about the part as a whole name: its file, or the index of its shards.
    path: PathBuf,
    dtype: DType,
    device: Device,
    used: Mutex<BTreeSet<String>>,
}

impl Weights {
    /// Opens `FOLDER/STEM.safetensors`, or the shards that `FOLDER/STEM.safetensors.index.json` lists.
    ///
    /// Tensors come out as `dtype` on `device`.
    pub fn open_part(folder: &Path, stem: &str, dtype: DType, device: &Device) -> Result<Self> {
        let single = folder.join(format!("{stem}.safetensors"));
        if single.is_file() {
            return Self::open(&single, std::slice::from_ref(&single), dtype, device);
        }
        let index = folder.join(format!("{stem}.safetensors.index.json"));
        if !index.is_file() {
            return Err(Error::file(
                folder,
                format!("no weights: expected {stem}.safetensors or {stem}.safetensors.index.json"),
            ));
        }
        let text = std::fs::read_to_string(&index).map_err(|e| Error::file(&index, e))?;
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let parsed: Index =
            serde_json::from_str(&text).map_err(|e| Error::file(&index, format!("not an index of shards: {e}")))?;
        let shards: BTreeSet<&String> = parsed.weight_map.values().collect();
        let shards: Vec<PathBuf> = shards.into_iter().map(|name| folder.join(name)).collect();
        let weights = Self::open(&index, &shards, dtype, device)?;
        for (name, shard) in &parsed.weight_map {
            if weights.files.get(name) != Some(&folder.join(shard)) {
                return Err(Error::file(&index, format!("tensor {name} is not in {shard}, where the index puts it")));
            }
        }
        Ok(weights)
    }

    /// Opens the given safetensors files as one set of tensors; `path` is what errors name.
    pub fn open(path: &Path, files: &[PathBuf], dtype: DType, device: &Device) -> Result<Self> {
        let mut names = HashMap::new();
        for file in files {
            for name in header(file)?.tensors.into_keys() {
                if let Some(other) = names.insert(name.clone(), file.clone()) {
                    return Err(Error::file(file, format!("tensor {name} is in {} too", other.display())));
                }
            }
        }
        // SAFETY: the files are mapped read-only; as with every memory-mapped model, they must not be changed
        // while they are in use.
        let tensors = unsafe { MmapedSafetensors::multi(files) }.map_err(|e| Error::file(path, e))?;
        Ok(Self {
            tensors,
            files: names,
            path: path.to_path_buf(),
            dtype,
            device: device.clone(),
            used: Mutex::default(),
        })
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The file or shard index that the tensors come from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn contains(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.files.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The tensor `name`, which must have this shape.
    pub fn get(&self, name: &str, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let tensor = self.get_any(name, &shape)?;
        if tensor.shape() != &shape {
            return Err(Error::file(
                &self.files[name],
                format!("tensor {name} has shape {:?}, expected {shape:?}", tensor.shape()),
            ));
        }
        Ok(tensor)
    }

    /// The tensor `name` in whatever shape it has; `expected` serves the message when it is missing.
    pub fn get_any(&self, name: &str, expected: &Shape) -> Result<Tensor> {
        let Some(file) = self.files.get(name) else {
            return Err(Error::file(&self.path, format!("tensor {name} is missing (expected shape {expected:?})")));
        };
        self.used().insert(name.to_string());
        let view = self.tensors.get(name).map_err(|e| Error::file(file, e))?;
        let tensor = candle_core::safetensors::Load::load(&view, &self.device)
            .and_then(|t| t.to_dtype(self.dtype))
            .map_err(|e| Error::file(file, format!("tensor {name}: {e}")))?;
        Ok(tensor)
    }

    fn used(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks a tensor that is rightly in the file but not needed, such as a stored position index.
    pub fn ignore(&self, name: &str) {
        self.used().insert(name.to_string());
    }

    /// Fails if the file holds tensors that nothing asked for: then it is another model than its config says.
    pub fn finish(&self) -> Result<()> {
        let used = self.used();
        let extra: Vec<&str> = self.names().into_iter().filter(|n| !used.contains(*n)).collect();
        match extra.first() {
            None => Ok(()),
            Some(first) => {
                let shape = self.tensors.get(first).map(|v| v.shape().to_vec()).unwrap_or_default();
                let more = match extra.len() - 1 {
                    0 => String::new(),
                    n => format!(", and {n} more"),
                };
                Err(Error::file(
                    &self.files[*first],
                    format!("tensor {first} {shape:?} is not part of the model that config.json describes{more}"),
                ))
            }
        }
    }
}

/// Reads every tensor of a safetensors file as it is stored, to the CPU.
pub fn read_all(file: &Path) -> Result<BTreeMap<String, Tensor>> {
    header(file)?;
    let tensors = candle_core::safetensors::load(file, &Device::Cpu).map_err(|e| Error::file(file, e))?;
    Ok(tensors.into_iter().collect())
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
