//! Numbers of eight bits and in blocks, as torch and the package gguf read them. Fixtures: tests/fixtures/stored/gen.py.
mod original_files;
mod smoke_run;

use candle_core::{DType, Device, Tensor};
use original_files::{Tensors, flux_transformer, part, write_gguf, write_parts};
use seg4diff::model::weights::{Weights, read_all};
use smoke_run::run;
use std::path::{Path, PathBuf};
use std::process::Command;

fn fixtures() -> PathBuf {
    PathBuf::from("tests/fixtures/stored")
}

fn expected() -> Tensors {
    read_all(&fixtures().join("expected.safetensors")).expect("expected")
}

fn open(file: &Path, dtype: DType) -> Result<Weights, String> {
    Weights::open(file, &[file.to_path_buf()], dtype, &Device::Cpu).map_err(|problem| problem.to_string())
}

/// Values in f32, which holds those of every type, as bits.
fn bits(tensor: &Tensor) -> Vec<u32> {
    let flat = tensor.to_dtype(DType::F32).and_then(|tensor| tensor.flatten_all()?.to_vec1::<f32>()).expect("values");
    flat.into_iter().map(f32::to_bits).collect()
}

#[test]
fn eight_bits_are_read_as_torch_reads_them() {
    let mut compared = 0;
    for (kept, name) in [(DType::F32, "float32"), (DType::BF16, "bfloat16"), (DType::F16, "float16")] {
        let weights = open(&fixtures().join("fp8.safetensors"), kept).expect("open");
        for (key, wanted) in &expected() {
            let Some(tensor) = key.strip_suffix(&format!(".{name}")) else { continue };
            let found = weights.get(tensor, wanted.dims()).expect("tensor");
            assert_eq!(found.dtype(), kept);
            assert!(bits(&found) == bits(wanted), "{key}");
            compared += 1;
        }
    }
    assert_eq!(compared, 23);
    // Of e5m2 times three, f16 cannot hold the largest.
    let refused = open(&fixtures().join("fp8.safetensors"), DType::F16).expect("open").get("e5m2.rows.weight", (8, 31));
    let refused = refused.expect_err("too large").to_string();
    assert!(refused.contains("e5m2.rows.weight") && refused.contains("too large for f16"), "{refused}");
}

#[test]
fn blocks_are_read_as_the_reference_reads_them() {
    let file = fixtures().join("blocks.gguf");
    let weights = open(&file, DType::F32).expect("open");
    let mut compared = 0;
    for (key, wanted) in expected().iter().filter(|(key, _)| weights.contains(key)) {
        let found = weights.get(key, wanted.dims()).expect("tensor");
        assert!(bits(&found) == bits(wanted), "{key}");
        let blocks = weights.stored_quantised(key).expect("blocks");
        assert_eq!(blocks.is_some(), !["F32.weight", "F16.weight", "BF16.weight"].contains(&key.as_str()), "{key}");
        // Layers keep the blocks.
        if let Ok(shape) = wanted.dims2() {
            let frozen = weights.frozen(key, shape).expect("frozen");
            assert_eq!(frozen.is_quantized(), blocks.is_some(), "{key}");
            assert!(bits(&frozen.in_type(DType::F32).expect("written out")) == bits(wanted), "{key}");
        }
        if let Some(blocks) = blocks {
            assert!(bits(&blocks.dequantize(&Device::Cpu).expect("values")) == bits(wanted), "{key}");
        }
        compared += 1;
    }
    assert_eq!((compared, weights.names().len()), (14, 14));
    weights.finish().expect("all were read");
}

/// A FLUX.1 transformer in blocks: the rows of a fused layer are read by themselves.
#[test]
fn a_model_in_blocks_draws_the_picture_of_what_they_stand_for() {
    let out = tempfile::tempdir().expect("folder");
    let folder = Path::new("tests/fixtures/flux/dev");
    let transformer = flux_transformer(&part(&folder.join("transformer")));
    let (gguf, plain) = (out.path().join("flux1-dev-Q8_0.gguf"), out.path().join("flux1-dev.safetensors"));
    write_parts(&plain, &[("", &write_gguf(&gguf, &transformer))]);

    // T5's names in llama.cpp.
    let t5 = part(&folder.join("text_encoder_2"));
    let renamed = t5.iter().map(|(name, tensor)| (of_llama_cpp(name), tensor.clone())).collect();
    let (file, numbers) = (out.path().join("t5-Q8_0.gguf"), out.path().join("t5.safetensors"));
    let values = write_gguf(&file, &renamed);
    write_parts(
        &numbers,
        &[("", &t5.keys().map(|name| (name.clone(), values[&of_llama_cpp(name)].clone())).collect())],
    );

    let wanted = draw(&plain, &numbers, "plain").expect("plain");
    assert!(draw(&gguf, &file, "blocks").expect("blocks") == wanted);

    let whole = std::fs::read(&gguf).expect("file");
    let cut = out.path().join("cut.gguf");
    for (length, said) in
        [(whole.len() - 4000, "cut short"), (200, "not a GGUF file that is read"), (2, "not a GGUF file")]
    {
        std::fs::write(&cut, &whole[..length]).expect("write");
        let refused = draw(&cut, &file, "cut").expect_err("cut short");
        assert!(refused.contains(said) && refused.lines().count() == 1, "{length}: {refused}");
    }
}

fn of_llama_cpp(name: &str) -> String {
    let names = [
        ("encoder.final_layer_norm", "enc.output_norm"),
        ("encoder.block.", "enc.blk."),
        ("shared", "token_embd"),
        ("layer.0.SelfAttention.relative_attention_bias", "attn_rel_b"),
        ("layer.0.SelfAttention.", "attn_"),
        ("layer.0.layer_norm", "attn_norm"),
        ("layer.1.DenseReluDense.wi_0", "ffn_gate"),
        ("layer.1.DenseReluDense.wi_1", "ffn_up"),
        ("layer.1.DenseReluDense.wo", "ffn_down"),
        ("layer.1.layer_norm", "ffn_norm"),
    ];
    names.into_iter().fold(name.to_string(), |name, (from, to)| name.replace(from, to))
}

/// The picture that `generate` draws.
fn draw(model: &Path, t5: &Path, name: &str) -> Result<Vec<u8>, String> {
    let out = tempfile::tempdir().expect("folder");
    let folder = Path::new("tests/fixtures/flux/dev");
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.args(["generate", "--prompt", "a cat", "--size", "64", "--steps", "2", "--device", "cpu"]);
    command.args(["--max-sequence-length", "40", "--model"]).arg(model).arg("--out").arg(out.path().join(name));
    for (key, path) in [
        ("config", folder.to_path_buf()),
        ("vae", folder.join("vae")),
        ("clip_l", folder.join("text_encoder/model.safetensors")),
        ("t5", t5.to_path_buf()),
    ] {
        command.arg("--model-file").arg(format!("{key}={}", path.display()));
    }
    let (output, said) = run(&mut command);
    match output.status.success() {
        true => Ok(std::fs::read(out.path().join(name).join("000000.png")).expect("picture")),
        false => Err(said),
    }
}

/// Whole numbers are no weights: what stands for others in a way that is not known is refused.
#[test]
fn whole_numbers_are_refused() {
    let out = tempfile::tempdir().expect("folder");
    let file = out.path().join("int8.safetensors");
    let header = br#"{"a.weight":{"dtype":"I8","shape":[2,2],"data_offsets":[0,4]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header, &[1, 2, 3, 4]].concat();
    std::fs::write(&file, bytes).expect("write");
    let refused = open(&file, DType::F32).expect("open").get("a.weight", (2, 2)).expect_err("refused").to_string();
    assert!(refused.contains("tensor a.weight: is stored as I8") && refused.contains("fp8 or GGUF"), "{refused}");
}
