//! CLIPScore against transformers (tests/fixtures/clip/gen.py).
use candle_core::Device;
use seg4diff::eval::clip_score::{ClipScorer, clip_scores};
use seg4diff::sample::image::read_rgb8;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clip")
}

fn json<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(folder().join(name)).unwrap()).unwrap()
}

fn found() -> BTreeMap<String, f64> {
    let captions: BTreeMap<String, String> = json("captions.json");
    let images: Vec<_> =
        captions.keys().map(|key| read_rgb8(&folder().join(format!("images/{key}.png"))).unwrap()).collect();
    let scorer = ClipScorer::open(&folder().join("model"), &Device::Cpu).unwrap();
    let texts: Vec<&str> = captions.values().map(String::as_str).collect();
    let cosines = scorer.cosines(&images, &texts).unwrap();
    captions.into_keys().zip(cosines).collect()
}

#[test]
fn cosines_are_those_of_transformers() {
    let expected: BTreeMap<String, BTreeMap<String, f64>> = json("expected.json");
    let found = found();
    // transformers' two image processors differ by up to 1.1e-4 here: torchvision rounds to bytes differently than
    // Pillow.
    for (backend, limit) in [("pil", 1e-6), ("torchvision", 1.2e-4)] {
        for (key, cosine) in &expected[backend] {
            let difference = (cosine - found[key]).abs();
            assert!(difference < limit, "{backend} {key}: {}, expected {cosine}", found[key]);
        }
    }
}

#[test]
fn scores_are_means_of_what_their_authors_say() {
    let scores = clip_scores(&[0.3, -0.1, 0.2]).unwrap();
    assert!((scores.clip_score - 2.5 * 0.5 / 3.0).abs() < 1e-12 && (scores.cosine - 0.4 / 3.0).abs() < 1e-12);
    assert_eq!(scores.images, 3);
    assert!(clip_scores(&[]).is_err());
}

#[test]
fn what_is_no_clip_is_named() {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder().join("model")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let fails = |wanted: &str| {
        let problem = ClipScorer::open(copy.path(), &Device::Cpu).err().unwrap().to_string();
        assert!(problem.contains(wanted), "{problem}");
    };
    let change = |file: &str, from: &str, to: &str| {
        let text = std::fs::read_to_string(folder().join("model").join(file)).unwrap();
        assert!(text.contains(from));
        std::fs::write(copy.path().join(file), text.replacen(from, to, 1)).unwrap();
    };
    change("preprocessor_config.json", "\"resample\": 3", "\"resample\": 2");
    fails("resample is 2, expected 3 (bicubic)");
    change("preprocessor_config.json", "\"height\": 48", "\"height\": 40");
    fails("crop_size is no square");
    std::fs::remove_file(copy.path().join("preprocessor_config.json")).unwrap();
    fails("crop_size is 224, but the model's image_size is 48");
    change("config.json", "\"patch_size\": 12", "\"patch_size\": 7");
    fails("image_size 48 is no multiple of patch_size 7");
    change("config.json", "\"vocab_size\": 616", "\"vocab_size\": 617");
    fails("token_embedding");
    std::fs::remove_file(copy.path().join("model.safetensors")).unwrap();
    fails("expected model.safetensors");
}
