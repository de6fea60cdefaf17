//! What tests of a family's pictures share: comparisons, and a model cut into shards.
use crate::smoke_run::Run;
use candle_core::{DType, Tensor};
use seg4diff::demo::{self, SceneOptions, Split};
use seg4diff::model::weights::{read_all, write};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

pub fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).and_then(|t| t.flatten_all()?.to_vec1()).expect("values")
}

/// The largest difference, over the largest value.
pub fn relative(got: &Tensor, wanted: &Tensor) -> f32 {
    assert_eq!(got.dims(), wanted.dims());
    let (got, wanted) = (values(got), values(wanted));
    let largest = wanted.iter().fold(0f32, |m, v| m.max(v.abs()));
    got.iter().zip(&wanted).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

/// The mean difference of pixels, of 255.
pub fn difference(found: &[u8], wanted: &[u8]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    found.iter().zip(wanted).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / found.len() as f64
}

/// Cuts a transformer's weights into three shards with an index.
pub fn shard(model: &Path) {
    let transformer = model.join("transformer");
    let whole = transformer.join("diffusion_pytorch_model.safetensors");
    let mut shards = [BTreeMap::new(), BTreeMap::new(), BTreeMap::new()];
    let mut weight_map = BTreeMap::new();
    let name = |shard: usize| format!("diffusion_pytorch_model-0000{}-of-00003.safetensors", shard + 1);
    for (index, (tensor, values)) in read_all(&whole).expect("weights").into_iter().enumerate() {
        weight_map.insert(tensor.clone(), name(index % 3));
        shards[index % 3].insert(tensor, values);
    }
    for (shard, tensors) in shards.iter().enumerate() {
        write(&transformer.join(name(shard)), tensors, &BTreeMap::new()).expect("shard");
    }
    let index = json!({"metadata": {}, "weight_map": weight_map}).to_string();
    std::fs::write(transformer.join("diffusion_pytorch_model.safetensors.index.json"), index).expect("index");
    std::fs::remove_file(whole).expect("remove");
}

/// With `[eval]` a run of these settings is measured on the way: segmentation by its experts, and drawn pictures.
pub fn check_measured(settings: &[&str]) {
    let folder = tempfile::tempdir().expect("folder");
    let data = folder.path().join("scenes");
    demo::write(&data, 4, SceneOptions { seed: 3, split: Split::Val, size: 64 }, |_| ()).expect("scenes");
    let at = |name: &str| data.join(name).display().to_string();
    let eval = [
        format!("eval.images={}", at("images")),
        format!("eval.labels={}", at("labels")),
        format!("eval.classes={}", at("classes.json")),
        format!("eval.captions={}", at("captions.json")),
        "eval.features=checkpoints/demo-features".into(),
        "eval.generation_images=4".into(),
        "eval.size=64".into(),
        "eval.steps=2".into(),
        "train.steps=2".into(),
    ];
    let settings: Vec<&str> = settings.iter().copied().chain(eval.iter().map(String::as_str)).collect();
    let said = Run::new(&settings).finish(&[]);
    for done in ["segmented 4/4 base", "drawn 4/4 base", "segmented 4/4 after", "drawn 4/4 after"] {
        assert!(said.contains(done), "{done}: {said}");
    }
}
