//! Estimates the memory of a run before its first step, and which blocks must be recomputed for it to fit.
use crate::config::GradientCheckpointing;
use crate::model::families::SavedActivations;
use crate::ops;
use crate::ops::device::{GpuMemory, gpu_memory};
use crate::system::error::{Error, Result};
use crate::system::{memory, process};
use candle_core::Device;
use std::fmt;

/// Sizes that a step's activations grow with.
#[derive(Clone, Copy, Debug)]
pub struct StepSize {
    /// Images a forward pass.
    pub batch: usize,
    /// Tokens of an image.
    pub image_tokens: usize,
    /// Tokens of a prompt.
    pub text_tokens: usize,
    /// Features of a token.
    pub width: usize,
    /// Bytes of an activation's value.
    pub value_bytes: usize,
}

/// Sizes that decide how much memory a run adds to that in use before its first step.
#[derive(Clone, Debug)]
pub struct Needs {
    /// What each of the model's blocks saves.
    pub blocks: Vec<SavedActivations>,
    /// Sizes of a micro-batch.
    pub size: StepSize,
    /// Bytes of the largest frozen weight that is written out in the type of the arithmetic to be multiplied with; see
    /// [`crate::model::families::Transformer::largest_written_out`].
    pub layer: u64,
    /// Numbers that are trained.
    pub trained: usize,
    /// Blocks whose attention learns the masks.
    pub experts: usize,
    /// Bytes that the score head's backward pass takes while all saved activations of the blocks are there; see
    /// [`score_head`].
    pub score_head: u64,
    /// Bytes that encoding one image takes for a moment; 0 with a cache.
    pub encoding: u64,
    /// Bytes of the samples that the loader holds.
    pub loader: u64,
}

/// Memory in use before the first step, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// In use.
    pub now: u64,
    /// The most so far: weights take twice their size while they are loaded.
    pub most: u64,
    /// Free.
    pub free: u64,
}

/// What a run takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    usage: (u64, u64),
    activations: u64,
    training: u64,
    encoding: u64,
    loader: u64,
}

// All in vectors of the model's width per token.

/// Held besides at the peak of a step, whatever is saved. By count: the last block's MLP has its hidden values, four times
/// as wide, beside its output and one more, forward, and their gradient beside that of the output and of the norm, backward:
/// six. Two more are for what no block counts: the log-sum-exp of its attention, and what an adapter has between its matrices.
const TRANSIENT_ACTIVATIONS: usize = 8;
/// Held for a block that is recomputed: its input again, the gradient of its output, and their products.
const RECOMPUTING: usize = 2;
/// Saved for each expert block but one, which the other numbers have in them: queries and keys, and their gradients.
const SAVED_BY_EXPERT: usize = 4;
/// Copies of everything that is trained: its gradient, the sum over micro-batches, and AdamW's two moments.
const TRAINING_COPIES: u64 = 4;
/// A run starts although the estimate says that it does not fit, if it is over by less than this.
const TOLERATED_OVERRUN: f64 = 1.15;

impl Needs {
    /// Bytes of activations that block `layer` saves; the scores of attention are not saved.
    pub fn block(&self, layer: usize) -> u64 {
        let SavedActivations { image, text } = self.blocks[layer];
        self.values(image * self.size.image_tokens + text * self.size.text_tokens)
    }

    /// Bytes of a batch of so many vectors of the model's width.
    fn values(&self, vectors: usize) -> u64 {
        (self.size.batch * vectors * self.size.width * self.size.value_bytes) as u64
    }

    /// Memory of the run if the first `recomputed` blocks save only their input.
    pub fn estimate(&self, recomputed: usize, usage: Usage) -> Estimate {
        let tokens = self.size.image_tokens + self.size.text_tokens;
        let saved: u64 = (recomputed..self.blocks.len()).map(|layer| self.block(layer)).sum();
        // Those that are recomputed come when the others' activations are freed.
        let again = (0..recomputed.min(self.blocks.len())).map(|layer| self.block(layer)).max();
        let again = again.map_or(0, |block| block + self.values(RECOMPUTING * tokens));
        let backward = saved.max(again) + self.values(TRANSIENT_ACTIVATIONS * tokens);
        Estimate {
            usage: (usage.now, usage.most),
            activations: (backward + self.layer).max(saved + self.score_head)
                + self.values((recomputed + SAVED_BY_EXPERT * self.experts.saturating_sub(1)) * tokens),
            training: TRAINING_COPIES * 4 * self.trained as u64,
            encoding: self.encoding,
            loader: self.loader,
        }
    }

    /// How many of the first blocks are to be recomputed, and what the run then takes: with `auto`, as few as fit.
    ///
    /// # Errors
    /// `Error::Failed` where it does not fit.
    pub fn plan(&self, choice: GradientCheckpointing, usage: Usage) -> Result<(usize, Estimate)> {
        let all = self.blocks.len();
        let fits = |recomputed: &usize| self.estimate(*recomputed, usage).added() <= usage.free;
        let recomputed = match choice {
            GradientCheckpointing::Off => 0,
            GradientCheckpointing::On => all,
            GradientCheckpointing::Auto => (0..all).find(fits).unwrap_or(all),
        };
        let estimate = self.estimate(recomputed, usage);
        if estimate.added() as f64 <= TOLERATED_OVERRUN * usage.free as f64 {
            return Ok((recomputed, estimate));
        }
        let hint = match choice {
            GradientCheckpointing::Off => "take train.gradient_checkpointing = \"auto\", or lower train.batch",
            _ => "lower train.batch (and raise train.accumulate by as much) or data.resolution",
        };
        let free = gigabytes(usage.free);
        Err(Error::Failed(format!("not enough memory: {estimate}, but only {free} GB are free; {hint}")))
    }
}

impl Estimate {
    /// Memory added to that in use before the first step.
    pub fn added(&self) -> u64 {
        self.training + self.loader + self.activations.max(self.encoding)
    }

    /// The most that will be in use at a time.
    pub fn peak(&self) -> u64 {
        (self.usage.0 + self.added()).max(self.usage.1)
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { usage: (now, _), activations, training, encoding, loader } = *self;
        write!(f, "about {} GB of memory at the peak: {} are in use, ", gigabytes(self.peak()), gigabytes(now))?;
        write!(f, "activations take {}, encoding an image {}, ", gigabytes(activations), gigabytes(encoding))?;
        write!(f, "gradients and optimizer {}, the loader {}", gigabytes(training), gigabytes(loader))
    }
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / 1e9)
}

impl Usage {
    /// On the device; all zeros but for endless free memory where it cannot be known.
    pub fn of(device: &Device) -> Self {
        if device.is_cpu() {
            process::release_freed_memory();
            return Self {
                now: memory::resident_bytes().unwrap_or(0),
                most: memory::peak_bytes().unwrap_or(0),
                free: memory::free_bytes().unwrap_or(u64::MAX),
            };
        }
        gpu_memory(device).map_or(Self { free: u64::MAX, ..Self::default() }, Self::of_gpu)
    }

    /// What the driver's pool keeps for nobody is free: loading leaves some, and a step takes it before it asks for more.
    /// Weights are loaded one by one, so the most is what is in use.
    fn of_gpu(GpuMemory { total, free, kept }: GpuMemory) -> Self {
        let free = free + kept;
        let now = total.saturating_sub(free);
        Self { now, most: now, free }
    }
}

/// What the score head's backward pass takes on `device` for `maps` maps of `grid` rows and columns: on the CPU, where it
/// stores nothing, next to nothing. By count of its tensors; not measured on a GPU yet.
pub fn score_head(device: &Device, maps: usize, grid: (usize, usize)) -> u64 {
    if device.is_cpu() { 0 } else { ops::score_head_backward_bytes(maps, grid.0, grid.1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: StepSize = StepSize { batch: 1, image_tokens: 100, text_tokens: 54, width: 1536, value_bytes: 4 };

    /// Blocks of SD3-medium with adapters on the image's attention, but for the last, which saves less; nothing else.
    fn needs(size: StepSize) -> Needs {
        Needs {
            blocks: vec![SavedActivations { image: 11, text: 10 }; 24],
            size,
            layer: 0,
            trained: 0,
            experts: 1,
            score_head: 0,
            encoding: 0,
            loader: 0,
        }
    }

    #[test]
    fn blocks_are_recomputed_only_where_memory_is_short() {
        let size = StepSize { batch: 4, image_tokens: 4096, text_tokens: 154, ..SIZE };
        let needs = Needs { trained: 4_000_000, loader: 100, ..needs(size) };
        let plan = |choice, free| needs.plan(choice, Usage { now: 7, most: 9, free });
        let auto = |free| plan(GradientCheckpointing::Auto, free).map(|(recomputed, _)| recomputed).ok();
        let added = |recomputed| needs.estimate(recomputed, Usage::default()).added();
        assert_eq!(auto(u64::MAX / 2), Some(0));
        for recomputed in [1, 10, 23] {
            assert_eq!(auto(added(recomputed)), Some(recomputed));
            assert_eq!(auto(added(recomputed) - 1), Some(recomputed + 1));
        }
        assert_eq!((auto(added(24) * 9 / 10), auto(added(24) * 8 / 10)), (Some(24), None));
        let refused = plan(GradientCheckpointing::Auto, 1_000_000_000).expect_err("too little").to_string();
        assert!(refused.contains("only 1.00 GB are free") && refused.contains("train.batch"), "{refused}");
        let refused = plan(GradientCheckpointing::Off, added(0) / 2).expect_err("too little").to_string();
        assert!(refused.contains("\"auto\""), "{refused}");
        let (recomputed, estimate) = plan(GradientCheckpointing::On, u64::MAX).expect("fits");
        assert_eq!((recomputed, estimate.peak()), (24, 7 + added(24)));
        assert_eq!(needs.estimate(0, Usage { now: 7, most: u64::MAX, free: 0 }).peak(), u64::MAX);
    }

    #[test]
    fn each_further_expert_saves_its_queries_and_keys() {
        let needs = |experts| Needs { experts, ..needs(StepSize { batch: 2, ..SIZE }) };
        for recomputed in [0, 24] {
            let added = |experts| needs(experts).estimate(recomputed, Usage::default()).added();
            assert_eq!(added(3) - added(1), 2 * 4 * 2 * 154 * 1536 * 4);
        }
    }

    #[test]
    fn a_cache_saves_what_encoding_takes() {
        let size = StepSize { image_tokens: 1, text_tokens: 1, ..SIZE };
        let needs = |encoding| Needs { encoding, loader: 5, ..needs(size) };
        let added = |encoding| needs(encoding).estimate(0, Usage::default()).added();
        assert_eq!(added(1 << 40), 5 + (1 << 40));
        assert_eq!(added(0), added(1));
    }

    /// The score head's backward pass runs while all saved activations are there, before the blocks' gradients.
    #[test]
    fn the_score_head_counts_beside_saved_activations() {
        let needs = |score_head| Needs { score_head, ..needs(SIZE) };
        let added = |score_head, recomputed| needs(score_head).estimate(recomputed, Usage::default()).added();
        let transient = 8 * 154 * 1536 * 4;
        for recomputed in [0, 20] {
            assert_eq!(added(transient, recomputed), added(0, recomputed));
            assert_eq!(added(transient + 8, recomputed), added(0, recomputed) + 8);
        }
        // A block that runs again takes more than the head does.
        assert_eq!(added(transient + 8, 24), added(0, 24));
        assert_eq!(score_head(&Device::Cpu, 64, (64, 64)), 0);
    }

    #[test]
    fn a_weight_that_is_written_out_counts_once() {
        let needs = |layer| Needs { layer, ..needs(SIZE) };
        for recomputed in [0, 24] {
            let added = |layer| needs(layer).estimate(recomputed, Usage::default()).added();
            assert_eq!(added(1000), added(0) + 1000);
        }
    }

    #[test]
    fn what_a_pool_keeps_is_free() {
        let usage = Usage::of_gpu(GpuMemory { total: 80, free: 60, kept: 15 });
        assert_eq!((usage.now, usage.most, usage.free), (5, 5, 75));
    }
}
