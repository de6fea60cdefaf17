//! Which blocks must be recomputed for the step to fit into memory.
use crate::config::GradientCheckpointing;
use crate::model::mmdit::MmDitConfig;
use candle_core::Device;

/// Sizes that a step's activations grow with.
#[derive(Clone, Copy, Debug)]
pub struct StepSize {
    pub batch: usize,
    pub image_tokens: usize,
    pub text_tokens: usize,
    /// Bytes of an activation's value.
    pub value_bytes: usize,
}

/// Values of a token's width that a block's graph keeps for its backward pass, counted from `Block::forward`: norms,
/// q, k, v, their joined copies, attention, residuals, and the MLP at four times the width, twice.
const KEPT: usize = 26;
/// The same for the second attention of SD3.5-medium.
const KEPT_BY_SECOND_ATTENTION: usize = 9;
/// Share of free memory that activations may take; the rest is for gradients, text encoders, autoencoder and loader.
const SHARE: f64 = 0.6;

/// Bytes of activations that block `layer` keeps, batch · tokens · width large; the scores of attention are not kept.
pub fn block_bytes(config: &MmDitConfig, layer: usize, size: StepSize) -> u64 {
    let second = if config.dual_attention_layers.contains(&layer) { KEPT_BY_SECOND_ATTENTION } else { 0 };
    let values = KEPT * (size.image_tokens + size.text_tokens) + second * size.image_tokens;
    (size.batch * values * config.width() * size.value_bytes) as u64
}

/// How many of the first blocks keep only their input: as many as it takes for the others to fit into `free` bytes.
pub fn recomputed_blocks(
    choice: GradientCheckpointing,
    config: &MmDitConfig,
    size: StepSize,
    free: Option<u64>,
) -> usize {
    match (choice, free) {
        (GradientCheckpointing::Off, _) | (GradientCheckpointing::Auto, None) => 0,
        (GradientCheckpointing::On, _) => config.num_layers,
        (GradientCheckpointing::Auto, Some(free)) => {
            let mut left = (free as f64 * SHARE) as u64;
            let kept = (0..config.num_layers).rev().take_while(|layer| {
                let bytes = block_bytes(config, *layer, size);
                let fits = bytes <= left;
                left = left.saturating_sub(bytes);
                fits
            });
            config.num_layers - kept.count()
        }
    }
}

/// Free memory of the device in bytes, where it can be known.
pub fn free_bytes(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu => kilobytes("/proc/meminfo", "MemAvailable:"),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            let (free, _) = candle_core::cuda_backend::cudarc::driver::result::mem_get_info().ok()?;
            Some(free as u64 + crate::ops::cuda::memory::kept(device).ok()?)
        }
        _ => None,
    }
}

/// The most memory that the program has had so far, in bytes, where it can be known.
pub fn peak_bytes() -> Option<u64> {
    kilobytes("/proc/self/status", "VmHWM:")
}

/// A line such as `VmHWM:  1234 kB` of the kernel's files, in bytes.
fn kilobytes(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> MmDitConfig {
        MmDitConfig {
            patch_size: 2,
            in_channels: 16,
            out_channels: Some(16),
            num_layers: 24,
            attention_head_dim: 64,
            num_attention_heads: 24,
            joint_attention_dim: 4096,
            caption_projection_dim: 1536,
            pooled_projection_dim: 2048,
            pos_embed_max_size: 192,
            dual_attention_layers: vec![],
            qk_norm: None,
        }
    }

    #[test]
    fn blocks_are_recomputed_only_where_memory_is_short() {
        let config = config();
        let size = StepSize { batch: 4, image_tokens: 4096, text_tokens: 154, value_bytes: 4 };
        let block = block_bytes(&config, 0, size);
        let auto = |free| recomputed_blocks(GradientCheckpointing::Auto, &config, size, Some(free));
        assert_eq!(auto(u64::MAX / 2), 0);
        assert_eq!(auto(0), 24);
        assert_eq!(auto((block * 10) * 10 / 6 + 100), 14);
        assert_eq!(recomputed_blocks(GradientCheckpointing::On, &config, size, None), 24);
        assert_eq!(recomputed_blocks(GradientCheckpointing::Off, &config, size, Some(0)), 0);
    }
}
