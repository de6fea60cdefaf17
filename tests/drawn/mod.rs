//! What tests of a family's pictures share: comparisons, and a model cut into shards.
use candle_core::{DType, Tensor};
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
