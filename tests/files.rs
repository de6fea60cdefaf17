//! A base model's files are opened strictly: any mismatch is one error that names file and place.
#[path = "fixtures/pipeline/mod.rs"]
mod pipeline;
mod tensor_edit;

use candle_core::{DType, Device};
use seg4diff::config::TextEncoderKind::{ClipG, ClipL, T5};
use seg4diff::model::text::TextEncoders;
use seg4diff::model::vae::Vae;
use seg4diff::model::weights;
use seg4diff::model::weights::files::{ModelFiles, Part};
use std::path::Path;
use tensor_edit::edit_tensors;

/// Loads everything this fixture has.
fn load(folder: &Path) -> seg4diff::Result<()> {
    let files = ModelFiles::open(folder.to_str().unwrap())?;
    TextEncoders::load(&files, &[ClipL, ClipG, T5], 8, DType::F32, &Device::Cpu)?;
    Vae::load(&files, &Device::Cpu)?;
    Ok(())
}

/// The result of loading after `damage`.
fn message(damage: impl FnOnce(&Path)) -> String {
    let folder = pipeline::copy();
    damage(folder.path());
    let message = load(folder.path()).expect_err("loading must fail").to_string();
    assert_eq!(message.lines().count(), 1, "one error, one line: {message}");
    message
}

fn edit(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{from} in {}", file.display());
    std::fs::write(file, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn the_fixture_loads() {
    load(&pipeline::folder().join("pipeline")).unwrap();
}

#[test]
fn damage_is_named() {
    type Damage = fn(&Path);
    const MODEL: &str = "model.safetensors";
    let cases: [(Damage, &[&str]); 19] = [
        (|f| std::fs::remove_file(f.join("model_index.json")).unwrap(), &["model_index.json", "no such file"]),
        (
            |f| edit(&f.join("model_index.json"), "StableDiffusion3Pipeline", "PixArtAlphaPipeline"),
            &["model_index.json", "_class_name", "PixArtAlphaPipeline"],
        ),
        (|f| std::fs::write(f.join("model_index.json"), "{").unwrap(), &["model_index.json", "line 1"]),
        (
            |f| edit(&f.join("vae/config.json"), "\"layers_per_block\"", "\"x\""),
            &["vae/config.json", "layers_per_block"],
        ),
        (|f| edit(&f.join("vae/config.json"), "\"silu\"", "\"mish\""), &["vae/config.json", "act_fn", "mish"]),
        (|f| edit(&f.join("vae/config.json"), "UpDecoderBlock2D", "AttnUpDecoderBlock2D"), &["AttnUpDecoderBlock2D"]),
        (
            |f| edit(&f.join("text_encoder/config.json"), "\"hidden_size\"", "\"x\""),
            &["text_encoder/config.json", "hidden_size"],
        ),
        (|f| edit(&f.join("text_encoder/config.json"), "quick_gelu", "relu"), &["text_encoder/config.json", "relu"]),
        (
            |f| edit(&f.join("text_encoder/config.json"), "\"num_attention_heads\": 4", "\"num_attention_heads\": 3"),
            &["text_encoder/config.json", "num_attention_heads 3"],
        ),
        (
            |f| edit(&f.join("transformer/config.json"), "\"joint_attention_dim\": 48", "\"joint_attention_dim\": 32"),
            &["transformer/config.json", "joint_attention_dim is 32", "40"],
        ),
        (
            |f| {
                edit(
                    &f.join("transformer/config.json"),
                    "\"pooled_projection_dim\": 32",
                    "\"pooled_projection_dim\": 3",
                )
            },
            &["transformer/config.json", "pooled_projection_dim is 3", "32"],
        ),
        (
            |f| std::fs::remove_file(f.join("vae/diffusion_pytorch_model.safetensors")).unwrap(),
            &["vae", "no weights", "diffusion_pytorch_model.safetensors"],
        ),
        (
            |f| {
                edit_tensors(&f.join("vae/diffusion_pytorch_model.safetensors"), |t| {
                    t.remove("decoder.conv_in.weight");
                })
            },
            &["diffusion_pytorch_model.safetensors", "decoder.conv_in.weight", "missing", "[16, 4, 3, 3]"],
        ),
        (
            |f| {
                edit_tensors(&f.join("text_encoder_3").join(MODEL), |t| {
                    let shape = t["encoder.final_layer_norm.weight"].narrow(0, 0, 5).unwrap();
                    t.insert("encoder.final_layer_norm.weight".into(), shape);
                })
            },
            &["text_encoder_3", "encoder.final_layer_norm.weight", "[5]", "[48]"],
        ),
        (
            |f| {
                edit_tensors(&f.join("text_encoder_2").join(MODEL), |t| {
                    let copy = t["text_projection.weight"].clone();
                    t.insert("logit_scale".into(), copy);
                })
            },
            &["text_encoder_2", "logit_scale", "not part of the model"],
        ),
        (|f| std::fs::write(f.join("tokenizer/vocab.json"), "[1]").unwrap(), &["tokenizer/vocab.json"]),
        (
            |f| edit(&f.join("tokenizer_2/merges.txt"), "p h\n", "p h\nquite unknownsymbols\n"),
            &["tokenizer_2/merges.txt", "line 3", "not in vocab.json"],
        ),
        (|f| std::fs::remove_file(f.join("tokenizer_2/merges.txt")).unwrap(), &["tokenizer_2/merges.txt"]),
        (
            |f| std::fs::remove_file(f.join("tokenizer_3/tokenizer.json")).unwrap(),
            &["tokenizer_3", "tokenizer.json", "spiece.model"],
        ),
    ];
    for (number, (damage, named)) in cases.into_iter().enumerate() {
        let message = message(damage);
        for part in named {
            assert!(message.contains(part), "case {number}: {part:?} not in: {message}");
        }
    }
}

#[test]
fn what_old_files_hold_besides_is_no_error() {
    let folder = pipeline::copy();
    edit_tensors(&folder.path().join("text_encoder/model.safetensors"), |tensors| {
        let index = candle_core::Tensor::zeros((1, 77), DType::F32, &Device::Cpu).unwrap();
        tensors.insert("text_model.embeddings.position_ids".into(), index);
    });
    edit_tensors(&folder.path().join("text_encoder_3/model.safetensors"), |tensors| {
        let shared = tensors["shared.weight"].clone();
        tensors.insert("encoder.embed_tokens.weight".into(), shared);
    });
    load(folder.path()).unwrap();
    edit_tensors(&folder.path().join("text_encoder_3/model.safetensors"), |tensors| {
        tensors.remove("shared.weight");
    });
    load(folder.path()).unwrap();
}

#[test]
fn weight_files_are_one_file_or_index_and_shards() {
    let folder = pipeline::copy();
    let vae = folder.path().join("vae");
    let files = ModelFiles::open(folder.path().to_str().unwrap()).unwrap();
    let single = vae.join("diffusion_pytorch_model.safetensors");
    assert_eq!(files.weight_files(Part::Vae).unwrap(), std::slice::from_ref(&single));

    let mut rest = weights::read_all(&single).unwrap();
    let half = rest.split_off("decoder.up");
    std::fs::remove_file(&single).unwrap();
    let mut map = serde_json::Map::new();
    let shards = [("diffusion_pytorch_model-00001-of-00002.safetensors", rest), ("b.safetensors", half)];
    for (name, tensors) in &shards {
        weights::write(&vae.join(name), tensors, &Default::default()).unwrap();
        map.extend(tensors.keys().map(|tensor| (tensor.clone(), (*name).into())));
    }
    let index = vae.join("diffusion_pytorch_model.safetensors.index.json");
    std::fs::write(&index, serde_json::json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    assert_eq!(files.weight_files(Part::Vae).unwrap(), [index, vae.join(shards[1].0), vae.join(shards[0].0)]);
    Vae::load(&files, &Device::Cpu).unwrap();

    std::fs::remove_file(vae.join("b.safetensors")).unwrap();
    let message = files.weight_files(Part::Vae).unwrap_err().to_string();
    assert!(message.contains("vae/b.safetensors"), "{message}");
}

#[test]
fn a_hub_name_is_checked() {
    for name in ["hf:", "hf:nobody", "hf:a/b/c", "hf:/b", "hf:a/b@"] {
        let result = ModelFiles::open(name);
        assert!(matches!(result, Err(seg4diff::Error::Usage(ref text)) if text.contains(name)), "{name}");
    }
    let message = ModelFiles::open("/nowhere/model").err().unwrap().to_string();
    assert!(message.contains("/nowhere/model") && message.contains("hf:org/name"), "{message}");
}

/// The hub's cache works without network; a missing file is one error with repository and reason.
///
/// One test, since it sets environment variables of the process.
#[test]
fn the_hub_cache_serves_offline() {
    let cache = tempfile::tempdir().unwrap();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repository = cache.path().join("models--org--tiny");
    let snapshot = repository.join("snapshots").join(commit);
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::create_dir_all(repository.join("snapshots")).unwrap();
    std::fs::write(repository.join("refs/main"), commit).unwrap();
    let source = pipeline::copy();
    std::fs::rename(source.keep(), &snapshot).unwrap();
    // SAFETY: the only other threads of this test binary that read these variables are in `a_hub_name_is_checked`,
    // which fails before it builds a client.
    unsafe {
        std::env::set_var("HF_HUB_CACHE", cache.path());
        std::env::set_var("HF_HUB_OFFLINE", "1");
    }
    for name in ["hf:org/tiny".to_string(), format!("hf:org/tiny@{commit}")] {
        let files = ModelFiles::open(&name).unwrap();
        assert_eq!(files.path(), snapshot);
        TextEncoders::load(&files, &[ClipL, ClipG, T5], 8, DType::F32, &Device::Cpu).unwrap();
        Vae::load(&files, &Device::Cpu).unwrap();
        let message = files.weight_files(Part::Transformer).unwrap_err().to_string();
        assert!(message.contains("org/tiny") && message.contains("transformer/diffusion_pytorch_model"), "{message}");
    }
    let message = ModelFiles::open("hf:org/other").err().unwrap().to_string();
    assert!(message.contains("hf:org/other") && message.contains("HF_HUB_OFFLINE"), "{message}");

    // With the network allowed and refusing: an equal error, after the client's own retries.
    // SAFETY: only this test's own threads read these variables; see the call above.
    unsafe {
        std::env::remove_var("HF_HUB_OFFLINE");
        std::env::set_var("HF_ENDPOINT", "http://127.0.0.1:9");
    }
    assert!(ModelFiles::open("hf:org/tiny").is_ok());
    let message = ModelFiles::open("hf:org/other").err().unwrap().to_string();
    assert!(message.contains("hf:org/other") && message.contains("onnect"), "{message}");
    assert_eq!(message.lines().count(), 1);
}
