//! Peak memory of encoding and decoding: a few activations of the first level, as `Vae::encoding_bytes` says.
//!
//! A test binary of its own, since peak memory is per process. Attention is left out: beside activations of eight
//! channels, its scores are large.
#[path = "fixtures/pipeline/mod.rs"]
mod pipeline;
mod tensor_edit;

use candle_core::{Device, Tensor};
use seg4diff::model::vae::Vae;
use seg4diff::model::weights::files::ModelFiles;
use seg4diff::sample::noise;

const SIDE: usize = 1024;
/// The tiles of two threads.
const TILES: u64 = 24 << 20;

/// Peak memory of the process during `work`, in bytes above the memory before.
fn added(work: impl FnOnce() -> Tensor) -> u64 {
    let field = |name: &str| -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    };
    // Resets the peak.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = field("VmRSS:");
    work();
    field("VmHWM:") - before
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "reads /proc")]
fn a_picture_takes_a_few_maps_of_the_first_level() {
    let folder = pipeline::copy();
    let part = folder.path().join("vae");
    let config = std::fs::read_to_string(part.join("config.json")).unwrap();
    let plain = config.replace("\"mid_block_add_attention\": true", "\"mid_block_add_attention\": false");
    assert_ne!(plain, config);
    std::fs::write(part.join("config.json"), plain).unwrap();
    tensor_edit::edit_tensors(&part.join("diffusion_pytorch_model.safetensors"), |tensors| {
        tensors.retain(|name, _| !name.contains("attentions"));
    });
    let files = ModelFiles::open(folder.path().to_str().unwrap()).unwrap();
    let vae = Vae::load(&files, &Device::Cpu).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let normal = |channels, side| noise::normal(8, &[], (1, channels, side, side), &Device::Cpu).unwrap();
    let (image, latents) = (normal(3, SIDE), normal(4, SIDE / 4));
    let map = (4 * 8 * SIDE * SIDE) as u64;
    let encoding = added(|| pool.install(|| vae.encode(&image).unwrap()));
    let decoding = added(|| pool.install(|| vae.decode(&latents).unwrap()));
    assert_eq!(vae.encoding_bytes(SIDE), 2 * map);
    println!("a map takes {map} bytes, encoding {encoding}, decoding {decoding}");
    assert!(encoding < 2 * map + TILES, "encoding took {encoding} bytes, a map takes {map}");
    // The last level starts with twice as many channels: two activations enter, one is between the convolutions, one
    // leaves.
    assert!(decoding < 4 * map + TILES, "decoding took {decoding} bytes, a map takes {map}");
}
