//! What an adapter is to the rest of the program.
use super::stored::{Format, LayerTensors, PeftConfig};
use crate::autograd::Variable;
use crate::ops::{FrozenLayer, FrozenWeight, LowRank};
use crate::system::error::{Error, Result};
use candle_core::{Device, Result as TensorResult, Tensor};
use rand_chacha::ChaCha8Rng;
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

/// Adapters by the layer they belong to, by its name in diffusers.
pub type Adapters = BTreeMap<String, Box<dyn Adapter>>;

/// Adapters with variables for their parameters, by the layer they belong to.
pub struct TrainedAdapters {
    /// The adapters by the layer they belong to.
    pub adapters: Adapters,
    /// In the order of [`Adapter::parameters`].
    pub parameters: BTreeMap<String, Vec<Variable>>,
}

/// An adapter on its layer, differentiable in x and in its parameters, never in the layer's weight and bias.
pub enum Attached {
    /// `scale·B(Ax)` is added: computed in one node with the layer.
    LowRank(LowRank),
    /// Anything else: x `[…, in]` and the layer, to the output of both `[…, out]`.
    Function(Function),
}

/// What [`Attached::Function`] holds.
pub type Function = Box<dyn Fn(&Variable, &FrozenLayer) -> TensorResult<Variable>>;

/// The adapter of one linear layer, its parameters in f32.
pub trait Adapter: Any + fmt::Debug {
    /// What it adds to its layer while a step computes, with the parameters in these variables, whose order is that of
    /// [`Self::parameters`].
    ///
    /// # Errors
    /// They are of another number.
    fn attach(&self, parameters: Vec<Variable>) -> Result<Attached>;

    /// The parameters, in the order of [`AdapterSettings::parameters`].
    fn parameters(&self) -> Vec<&Tensor>;

    /// # Errors
    /// Why it does not fit a layer of so many inputs and outputs.
    fn check(&self, sizes: (usize, usize)) -> Result<(), String>;

    /// ΔW, `[out, in]` in f32 on the CPU. Of a kind whose ΔW depends on W: all that it is made of, as one tensor.
    fn delta(&self) -> TensorResult<Tensor>;

    /// By which settings it differs from one that is trained at the same place, each with what that is for people.
    fn differences(&self, trained: &dyn Adapter) -> Vec<(&'static str, String)>;

    /// Its kind's place in files.
    fn files(&self) -> &'static dyn AdapterFiles;

    /// What a file of this format holds of it: ends of names and tensors.
    fn stored(&self, format: Format) -> Result<Vec<(&'static str, Tensor)>>;

    /// Inputs and outputs of the layer that it fits.
    fn sizes(&self) -> (usize, usize);

    /// The adapter of a layer whose outputs are those of this one's in `ranges`, one after the other.
    fn outputs(&self, ranges: &[Range<usize>]) -> Result<Box<dyn Adapter>>;

    /// Without what has no effect, such as ranks that are zero; none where nothing is left.
    fn pruned(&self) -> Result<Option<Box<dyn Adapter>>>;
}

/// A kind of adapter with its settings: makes those of a run.
pub trait AdapterSettings: fmt::Debug {
    /// First part of its parameters' names, such as `lora`.
    fn kind(&self) -> &'static str;

    /// What people call it.
    fn title(&self) -> &'static str;

    /// The rank, of kinds that have one.
    fn rank(&self) -> Option<usize>;

    /// Names of the parameters of a layer, in a fixed order.
    fn parameters(&self) -> &'static [&'static str];

    /// Those of them that must change for the adapter to do something else than at its start.
    fn effective(&self) -> &'static [&'static str];

    /// Fresh parameters for a layer of this weight `[out, in]`, which do nothing yet; f32. `random` is the layer's own.
    fn create(&self, weight: &FrozenWeight, random: &mut ChaCha8Rng, device: &Device) -> Result<Vec<Tensor>>;

    /// The adapter with these parameters, whose memory it shares.
    fn adapter(&self, parameters: Vec<Tensor>) -> Result<Box<dyn Adapter>>;
}

/// How a kind of adapter is kept in files.
pub trait AdapterFiles: Sync {
    /// Ends of the names of a layer's tensors: for each style that is read, in one order.
    fn suffixes(&self, format: Format) -> &'static [&'static [&'static str]];

    /// Makes the adapters of what was found of each layer, whose tensors are in the order of [`Self::suffixes`].
    ///
    /// # Errors
    /// A tensor is missing or of a shape that does not fit, or the configuration says something that is not supported.
    fn read(
        &self,
        file: &Path,
        layers: BTreeMap<String, LayerTensors>,
        config: Option<&PeftConfig>,
    ) -> Result<Adapters>;

    /// The text of PEFT's `adapter_config.json`.
    fn peft_config(&self, adapters: &Adapters) -> Result<String>;

    /// What kohya's metadata says of the adapters: keys and values.
    fn kohya_metadata(&self, adapters: &Adapters) -> Vec<(&'static str, String)>;

    /// One adapter of a layer whose outputs are those of several, one after the other, of so many outputs each; some have
    /// no adapter.
    ///
    /// # Errors
    /// There is none with the same effect.
    fn fuse(&self, parts: &[(usize, Option<&dyn Adapter>)]) -> Result<Box<dyn Adapter>>;

    /// One adapter of a layer with the effect of several of this kind, each times its weight.
    ///
    /// # Errors
    /// There is none.
    fn sum(&self, _parts: &[(&dyn Adapter, f64)]) -> Result<Box<dyn Adapter>> {
        Err(Error::Usage("adapters of this kind cannot be weighted or added up".into()))
    }
}
