//! The autoencoder maps pictures to latents and back as diffusers does.
#[path = "fixtures/pipeline/mod.rs"]
mod pipeline;

use candle_core::{DType, Device, Tensor};
use pipeline::Expected;
use seg4diff::model::vae::Vae;
use seg4diff::model::weights::files::ModelFiles;
use seg4diff::ops::conv2d::{Conv2d, Stride};
use seg4diff::ops::group_norm::GroupNorm;
use seg4diff::sample::noise;

/// The fixture's autoencoders: the current format, and the old one with quantisation convolutions.
fn autoencoders() -> Vec<(&'static str, Vae)> {
    let new = pipeline::copy();
    let old = pipeline::copy();
    for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
        std::fs::copy(pipeline::folder().join("vae_old/vae").join(file), old.path().join("vae").join(file)).unwrap();
    }
    let load = |folder: &tempfile::TempDir| {
        Vae::load(&ModelFiles::open(folder.path().to_str().unwrap()).unwrap(), &Device::Cpu).unwrap()
    };
    vec![("vae", load(&new)), ("vae_old", load(&old))]
}

#[test]
fn latents_are_those_of_diffusers() {
    let expected = Expected::load();
    for (name, vae) in autoencoders() {
        let latents = vae.encode(expected.get("image")).unwrap();
        expected.assert_close(&format!("{name}_latents"), &latents, 1e-5);
    }
}

#[test]
fn pictures_are_those_of_diffusers() {
    let expected = Expected::load();
    for (name, vae) in autoencoders() {
        let picture = vae.decode(expected.get(&format!("{name}_given"))).unwrap();
        expected.assert_close(&format!("{name}_decoded"), &picture, 1e-5);
    }
}

#[test]
fn a_picture_of_a_wrong_size_is_refused() {
    let (_, vae) = autoencoders().remove(0);
    let image = Tensor::zeros((1, 3, 24, 42), DType::F32, &Device::Cpu).unwrap();
    let message = vae.encode(&image).unwrap_err().to_string();
    assert!(message.contains("multiples of 4") && message.contains("24×42"), "{message}");
}

#[test]
fn half_an_autoencoder_does_its_half() {
    let folder = pipeline::copy();
    let files = ModelFiles::open(folder.path().to_str().unwrap()).unwrap();
    let load = || Vae::load(&files, &Device::Cpu).unwrap();
    let (whole, encoder, decoder) = (load(), load().without_decoder(), load().without_encoder());
    let image = noise::normal(7, &[], (1, 3, 16, 16), &Device::Cpu).unwrap();
    let latents = encoder.encode(&image).unwrap();
    assert!(pipeline::values(&latents) == pipeline::values(&whole.encode(&image).unwrap()));
    let picture = decoder.decode(&latents).unwrap();
    assert!(pipeline::values(&picture) == pipeline::values(&whole.decode(&latents).unwrap()));
    assert!(decoder.encode(&image).is_err() && encoder.decode(&latents).is_err());
    assert!(whole.encoding_bytes(64) > 0 && decoder.encoding_bytes(64) == 0);
}

#[test]
fn convolution_agrees_with_candle_at_any_size() {
    let normal = |stream, shape: &[usize]| noise::normal(3, &[stream], shape, &Device::Cpu).unwrap();
    // One pixel, one column, odd sides, and tiles that do not divide the height.
    for (batch, input, output, height, width) in
        [(1, 3, 5, 1, 1), (2, 4, 3, 7, 1), (1, 1, 2, 9, 6), (2, 64, 24, 50, 65)]
    {
        for (kernel, stride) in [(1, Stride::One), (3, Stride::One), (3, Stride::Two)] {
            if stride == Stride::Two && (height < 2 || width < 2) {
                continue;
            }
            let x = normal(0, &[batch, input, height, width]);
            let (weight, bias) = (normal(1, &[output, input, kernel, kernel]), normal(2, &[output]));
            let found = Conv2d::new(weight.clone(), bias.clone(), stride).unwrap().forward(&x).unwrap();
            let (padded, padding, step) = match stride {
                Stride::One => (x, kernel / 2, 1),
                Stride::Two => (x.pad_with_zeros(2, 0, 1).unwrap().pad_with_zeros(3, 0, 1).unwrap(), 0, 2),
            };
            let expected = padded.conv2d(&weight, padding, step, 1, 1).unwrap();
            let expected = expected.broadcast_add(&bias.reshape((1, output, 1, 1)).unwrap()).unwrap();
            let case = format!("{input}→{output} {height}×{width}, kernel {kernel}, {stride:?}");
            pipeline::assert_close(&case, &found, &expected, 1e-5);
        }
    }
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let (_, vae) = autoencoders().remove(0);
    let image = noise::normal(4, &[], (2, 3, 64, 96), &Device::Cpu).unwrap();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let latents = vae.encode(&image).unwrap();
            [pipeline::values(&latents), pipeline::values(&vae.decode(&latents).unwrap())]
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(7));
}

#[test]
fn group_norm_is_exact_far_from_zero() {
    let x = (noise::normal(5, &[], (1, 4, 100, 100), &Device::Cpu).unwrap() + 1000.0).unwrap();
    let (weight, bias) =
        (Tensor::ones(4, DType::F32, &Device::Cpu).unwrap(), Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap());
    let y = GroupNorm::new(weight, bias, 2, 1e-6).unwrap().forward(&x).unwrap();
    for group in pipeline::values(&y).chunks(20_000) {
        let mean = group.iter().map(|v| f64::from(*v)).sum::<f64>() / 20_000.0;
        let variance = group.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 1e-3 && (variance - 1.0).abs() < 1e-3, "mean {mean}, variance {variance}");
    }
}
