//! Low-rank adapters: `y = Wx + b + (alpha/rank)·B(Ax)`.
use super::adapter::{Adapter, AdapterFiles, AdapterSettings, Adapters, Attached};
use super::lora_config::{LoraConfig, Patterns};
use super::stored::{Format, LayerTensors, PeftConfig};
use crate::autograd::Variable;
use crate::ops::{FrozenWeight, LowRank};
use crate::system::error::{Error, Result};
use candle_core::{DType, Device, Result as TensorResult, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// One layer's adapter, in f32.
#[derive(Clone, Debug)]
pub struct Lora {
    /// A: `[rank, in]`.
    pub down: Tensor,
    /// B: `[out, rank]`.
    pub up: Tensor,
    /// Numerator of the scale `alpha / rank`.
    pub alpha: f64,
}

impl Lora {
    /// Rows of A, columns of B.
    pub fn rank(&self) -> usize {
        self.down.dims()[0]
    }

    /// What B(Ax) is multiplied with.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank() as f64
    }
}

/// The LoRA that an adapter is.
fn lora(adapter: &dyn Adapter) -> Option<&Lora> {
    (adapter as &dyn Any).downcast_ref()
}

impl Adapter for Lora {
    fn attach(&self, parameters: Vec<Variable>) -> Result<Attached> {
        let [down, up] = pair_of(parameters)?;
        Ok(Attached::LowRank(LowRank { down, up, scale: self.scale() }))
    }

    fn parameters(&self) -> Vec<&Tensor> {
        vec![&self.down, &self.up]
    }

    fn check(&self, (inner, outer): (usize, usize)) -> Result<(), String> {
        let rank = self.rank();
        if self.down.dims() == [rank, inner] && self.up.dims() == [outer, rank] {
            return Ok(());
        }
        let (down, up) = (self.down.dims(), self.up.dims());
        Err(format!("shapes {down:?} and {up:?}, expected [{rank}, {inner}] and [{outer}, {rank}]"))
    }

    /// (alpha/rank)·B·A.
    fn delta(&self) -> TensorResult<Tensor> {
        let (down, up) = (self.down.to_device(&Device::Cpu)?, self.up.to_device(&Device::Cpu)?);
        up.to_dtype(DType::F32)?.matmul(&down.to_dtype(DType::F32)?)? * self.scale()
    }

    fn differences(&self, trained: &dyn Adapter) -> Vec<(&'static str, String)> {
        let Some(trained) = lora(trained) else { return vec![("kind", "a LoRA, another kind is trained".into())] };
        if self.rank() != trained.rank() {
            return vec![("rank", format!("rank {}, lora.rank is {}", self.rank(), trained.rank()))];
        }
        let mut found = vec![];
        if self.alpha != trained.alpha {
            let hint = "a file that says none has its rank; `export --format peft` keeps alpha";
            found.push(("alpha", format!("alpha {}, lora.alpha is {} ({hint})", self.alpha, trained.alpha)));
        }
        if (self.down.dims(), self.up.dims()) != (trained.down.dims(), trained.up.dims()) {
            let shapes = |lora: &Self| format!("A {:?} and B {:?}", lora.down.dims(), lora.up.dims());
            found.push(("shape", format!("{}, the model's layer has {}", shapes(self), shapes(trained))));
        }
        found
    }

    fn files(&self) -> &'static dyn AdapterFiles {
        &LoraFiles
    }

    /// diffusers refuses `.alpha` keys for SD3 and then takes the scale for 1: it is part of B there.
    fn stored(&self, format: Format) -> Result<Vec<(&'static str, Tensor)>> {
        let (down, up) = (self.down.clone(), self.up.clone());
        Ok(match format {
            Format::Diffusers if self.scale() != 1.0 => {
                vec![("lora_A.weight", down), ("lora_B.weight", (up * self.scale())?)]
            }
            Format::Diffusers | Format::Peft => vec![("lora_A.weight", down), ("lora_B.weight", up)],
            Format::Comfyui => {
                let alpha = Tensor::new(self.alpha as f32, up.device())?;
                vec![("alpha", alpha), ("lora_down.weight", down), ("lora_up.weight", up)]
            }
        })
    }

    fn sizes(&self) -> (usize, usize) {
        (self.down.dims()[1], self.up.dims()[0])
    }

    fn outputs(&self, ranges: &[Range<usize>]) -> Result<Box<dyn Adapter>> {
        let rows = ranges.iter().map(|range| self.up.narrow(0, range.start, range.len()));
        let up = Tensor::cat(&rows.collect::<TensorResult<Vec<_>>>()?, 0)?;
        Ok(Box::new(Self { up, ..self.clone() }))
    }

    /// Without the ranks whose column of B is zero; the scale stays.
    fn pruned(&self) -> Result<Option<Box<dyn Adapter>>> {
        let largest = self.up.abs()?.max(0)?.to_vec1::<f32>()?;
        // not `> 0.0`: a value that is not a number must not vanish
        let used: Vec<u32> = (0..).zip(&largest).filter(|(_, v)| **v != 0.0).map(|(i, _)| i).collect();
        if used.is_empty() {
            return Ok(None);
        }
        let alpha = self.scale() * used.len() as f64;
        let used = Tensor::new(used, self.up.device())?;
        let (down, up) = (self.down.index_select(&used, 0)?, self.up.index_select(&used, 1)?);
        Ok(Some(Box::new(Self { down, up, alpha })))
    }
}

/// Settings of the LoRAs of a run.
#[derive(Clone, Copy, Debug)]
pub struct LoraSettings {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// Numerator of the scale `alpha / rank`.
    pub alpha: f64,
}

impl AdapterSettings for LoraSettings {
    fn kind(&self) -> &'static str {
        "lora"
    }

    fn title(&self) -> &'static str {
        "LoRA"
    }

    fn rank(&self) -> Option<usize> {
        Some(self.rank)
    }

    fn parameters(&self) -> &'static [&'static str] {
        &["down", "up"]
    }

    /// B moves first, and as long as it is zero, A has no effect.
    fn effective(&self) -> &'static [&'static str] {
        &["up"]
    }

    /// A normal with standard deviation 1/rank, B zero (PEFT's `init_lora_weights="gaussian"`).
    fn create(&self, weight: &FrozenWeight, random: &mut ChaCha8Rng, device: &Device) -> Result<Vec<Tensor>> {
        let (rank, (outer, inner)) = (self.rank, weight.dims2()?);
        let down: Vec<f32> =
            (0..rank * inner).map(|_| Distribution::<f32>::sample(&StandardNormal, random) / rank as f32).collect();
        Ok(vec![Tensor::from_vec(down, (rank, inner), device)?, Tensor::zeros((outer, rank), DType::F32, device)?])
    }

    fn adapter(&self, parameters: Vec<Tensor>) -> Result<Box<dyn Adapter>> {
        let [down, up] = pair_of(parameters)?;
        Ok(Box::new(Lora { down, up, alpha: self.alpha }))
    }
}

/// A and B.
fn pair_of<T>(parameters: Vec<T>) -> Result<[T; 2]> {
    let count = parameters.len();
    parameters.try_into().map_err(|_| Error::Failed(format!("a LoRA has A and B, not {count} parameters")))
}

/// LoRA in files.
pub struct LoraFiles;

impl AdapterFiles for LoraFiles {
    fn suffixes(&self, format: Format) -> &'static [&'static [&'static str]] {
        match format {
            Format::Diffusers | Format::Peft => &[
                &["lora_A.weight", "lora_B.weight", "alpha"],
                &["lora.down.weight", "lora.up.weight", "alpha"],
                &["lora_A.default.weight", "lora_B.default.weight", "alpha"],
            ],
            Format::Comfyui => &[&["lora_down.weight", "lora_up.weight", "alpha"]],
        }
    }

    /// The scale is that of kohya's `alpha`, or as PEFT's configuration says, or 1.
    fn read(
        &self,
        file: &Path,
        layers: BTreeMap<String, LayerTensors>,
        config: Option<&PeftConfig>,
    ) -> Result<Adapters> {
        let config = config.map(|config| Ok::<_, Error>((LoraConfig::parse(config)?, config))).transpose()?;
        let read = |(layer, mut parts): (String, LayerTensors)| {
            let (down, up) = pair(file, &layer, parts.remove(&0), parts.remove(&1))?;
            let rank = down.dims()[0] as f64;
            let own = match parts.remove(&2) {
                Some(alpha) if alpha.elem_count() == 1 => {
                    alpha.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?.first().copied()
                }
                Some(alpha) => {
                    let problem = format!("{layer}.alpha has shape {:?}, expected one number", alpha.dims());
                    return Err(Error::file(file, problem));
                }
                None => None,
            };
            let alpha = match (own, &config) {
                (Some(alpha), _) => alpha,
                (None, None) => rank,
                (None, Some((config, place))) => config.alpha(place, &layer, down.dims()[0])?,
            };
            let lora = Lora { down, up, alpha };
            if !(lora.scale() as f32).is_finite() {
                let problem = format!("module {layer}: alpha {alpha} at rank {rank} is no number to multiply with");
                return Err(Error::file(file, problem));
            }
            Ok((layer, Box::new(lora) as Box<dyn Adapter>))
        };
        layers.into_iter().map(read).collect()
    }

    fn peft_config(&self, adapters: &Adapters) -> Result<String> {
        let loras: BTreeMap<&String, &Lora> =
            adapters.iter().filter_map(|(name, adapter)| Some((name, lora(adapter.as_ref())?))).collect();
        let Some(first) = loras.values().next() else { return Err(Error::Failed("no LoRA to describe".into())) };
        let other_rank = loras.iter().filter(|(_, l)| l.rank() != first.rank());
        let other_alpha = loras.iter().filter(|(_, l)| l.alpha != first.alpha);
        let config = LoraConfig {
            peft_type: Some("LORA".into()),
            inference_mode: true,
            r: first.rank(),
            lora_alpha: first.alpha,
            rank_pattern: Patterns(other_rank.map(|(layer, l)| (layer.to_string(), l.rank())).collect()),
            alpha_pattern: Patterns(other_alpha.map(|(layer, l)| (layer.to_string(), l.alpha)).collect()),
            // whole names, so that a choice of layers holds
            target_modules: loras.keys().map(|name| name.to_string()).collect(),
            bias: "none".into(),
            ..LoraConfig::default()
        };
        serde_json::to_string_pretty(&config).map_err(|e| Error::Failed(e.to_string()))
    }

    fn kohya_metadata(&self, adapters: &Adapters) -> Vec<(&'static str, String)> {
        let largest = adapters.values().filter_map(|adapter| lora(adapter.as_ref())).max_by_key(|lora| lora.rank());
        largest.map_or(vec![], |largest| {
            vec![("ss_network_dim", largest.rank().to_string()), ("ss_network_alpha", largest.alpha.to_string())]
        })
    }

    /// A's stacked, B's side by side with their scales.
    fn sum(&self, parts: &[(&dyn Adapter, f64)]) -> Result<Box<dyn Adapter>> {
        let other = || Error::Usage("a LoRA and an adapter of another kind cannot be added up".into());
        let parts: Vec<(&Lora, f64)> =
            parts.iter().map(|(part, weight)| Ok((lora(*part).ok_or_else(other)?, *weight))).collect::<Result<_>>()?;
        if let [(only, weight)] = parts[..] {
            return Ok(Box::new(Lora { alpha: only.alpha * weight, ..only.clone() }));
        }
        let downs: Vec<&Tensor> = parts.iter().map(|(lora, _)| &lora.down).collect();
        let ups = parts.iter().map(|(lora, weight)| &lora.up * (lora.scale() * weight));
        let (down, up) = (Tensor::cat(&downs, 0)?, Tensor::cat(&ups.collect::<TensorResult<Vec<_>>>()?, 1)?);
        let alpha = down.dims()[0] as f64;
        Ok(Box::new(Lora { down, up, alpha }))
    }

    /// A's stacked, B's on the diagonal, zero rows for a part that has none.
    ///
    /// Its rank is the sum of the ranks, so alpha grows with it: the scale stays.
    fn fuse(&self, parts: &[(usize, Option<&dyn Adapter>)]) -> Result<Box<dyn Adapter>> {
        let parts: Vec<(usize, Option<&Lora>)> =
            parts.iter().map(|(rows, part)| (*rows, part.and_then(lora))).collect();
        let present: Vec<&Lora> = parts.iter().filter_map(|(_, part)| *part).collect();
        let first = present.first().ok_or_else(|| Error::Failed("a fused adapter without parts".into()))?;
        let rank: usize = present.iter().map(|lora| lora.rank()).sum();
        // parts may differ in scale: what sets one apart from the first goes into its B
        let scale = first.scale();
        let mut blocks = Vec::new();
        let mut before = 0;
        for (rows, part) in parts {
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
        let (down, up) = (Tensor::cat(&downs, 0)?, Tensor::cat(&blocks, 0)?);
        Ok(Box::new(Lora { down, up, alpha: scale * rank as f64 }))
    }
}

/// Both matrices in f32, their shapes checked against each other: `[rank, in]` and `[out, rank]`.
fn pair(file: &Path, layer: &str, down: Option<Tensor>, up: Option<Tensor>) -> Result<(Tensor, Tensor)> {
    let (Some(down), Some(up)) = (&down, &up) else {
        let side = if down.is_some() { "up (B)" } else { "down (A)" };
        return Err(Error::file(file, format!("module {layer} has no {side} matrix")));
    };
    match (down.dims(), up.dims()) {
        ([rank, _], [_, other]) if rank == other && *rank > 0 => {
            Ok((down.to_dtype(DType::F32)?, up.to_dtype(DType::F32)?))
        }
        (a, b) => {
            let problem = format!("module {layer}: A has shape {a:?} and B {b:?}, expected [rank, in] and [out, rank]");
            Err(Error::file(file, problem))
        }
    }
}
