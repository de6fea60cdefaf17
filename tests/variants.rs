//! Weights in variants (`*.fp16.safetensors`) are loaded as diffusers loads them.
mod folder_copy;

use folder_copy::copy;
use seg4diff::model::weights;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The smoke model in a folder of its own.
fn model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(&root().join("checkpoints/smoke-base"), folder.path());
    folder
}

/// The files of weights below a folder.
fn weight_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(weight_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "safetensors") {
            found.push(path);
        }
    }
    found
}

fn renamed(file: &Path, variant: &str) -> PathBuf {
    file.with_extension(format!("{variant}.safetensors"))
}

/// The picture that `generate` draws, or what it says.
fn draw(model: &Path, arguments: &[&str]) -> Result<Vec<u8>, String> {
    let out = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.args(["generate", "--prompt", "x", "--size", "64", "--steps", "1", "--device", "cpu"]);
    command.arg("--model").arg(model).arg("--out").arg(out.path()).args(arguments);
    let output = command.output().unwrap();
    match output.status.success() {
        true => Ok(std::fs::read(out.path().join("000000.png")).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn the_only_variant_is_taken_and_of_several_the_named_one() {
    let folder = model();
    let plain = draw(folder.path(), &[]).unwrap();
    let files = weight_files(folder.path());
    files.iter().for_each(|file| std::fs::rename(file, renamed(file, "fp16")).unwrap());
    assert!(draw(folder.path(), &[]).unwrap() == plain);
    assert!(draw(folder.path(), &["--variant", "fp16"]).unwrap() == plain);
    let refused = draw(folder.path(), &["--variant", "bf16"]).unwrap_err();
    assert!(refused.contains("only variants are there, \"fp16\""), "{refused}");

    // A second variant, of zeros in the autoencoder: other pictures.
    for file in &files {
        let mut tensors = weights::read_all(&renamed(file, "fp16")).unwrap();
        if file.parent().is_some_and(|part| part.ends_with("vae")) {
            tensors.values_mut().for_each(|tensor| *tensor = tensor.zeros_like().unwrap());
        }
        weights::write(&renamed(file, "zero"), &tensors, &BTreeMap::new()).unwrap();
    }
    let refused = draw(folder.path(), &[]).unwrap_err();
    assert!(refused.contains("only variants are there, \"fp16\", \"zero\""), "{refused}");
    assert!(draw(folder.path(), &["--variant", "zero"]).unwrap() != plain);
    assert!(draw(folder.path(), &["--variant", "fp16"]).unwrap() == plain);
    // Parts without the variant have their plain files.
    files.iter().for_each(|file| std::fs::rename(renamed(file, "fp16"), file).unwrap());
    assert!(draw(folder.path(), &["--variant", "fp16"]).unwrap() == plain);
}

#[test]
fn shards_of_a_variant_are_found_by_either_name_of_their_index() {
    for index in ["model.safetensors.index.fp16.json", "model.safetensors.fp16.index.json"] {
        let folder = model();
        let plain = draw(folder.path(), &[]).unwrap();
        let encoder = folder.path().join("text_encoder");
        let whole = encoder.join("model.safetensors");
        let mut tensors = weights::read_all(&whole).unwrap();
        let middle = tensors.keys().nth(tensors.len() / 2).unwrap().clone();
        let rest = tensors.split_off(&middle);
        std::fs::remove_file(&whole).unwrap();
        let mut map = serde_json::Map::new();
        for (number, tensors) in [(1, tensors), (2, rest)] {
            let name = format!("model.fp16-0000{number}-of-00002.safetensors");
            weights::write(&encoder.join(&name), &tensors, &BTreeMap::new()).unwrap();
            map.extend(tensors.keys().map(|tensor| (tensor.clone(), name.clone().into())));
        }
        std::fs::write(encoder.join(index), serde_json::json!({"weight_map": map}).to_string()).unwrap();
        assert!(draw(folder.path(), &["--variant", "fp16"]).unwrap() == plain, "{index}");
        assert!(draw(folder.path(), &[]).unwrap() == plain, "{index}");
        std::fs::remove_file(encoder.join("model.fp16-00002-of-00002.safetensors")).unwrap();
        let refused = draw(folder.path(), &[]).unwrap_err();
        assert!(refused.contains("model.fp16-00002-of-00002.safetensors: no such file"), "{refused}");
    }
}

#[test]
fn a_run_checks_and_fingerprints_the_variant() {
    let folder = model();
    weight_files(folder.path()).iter().for_each(|file| std::fs::rename(file, renamed(file, "fp16")).unwrap());
    let check = |settings: &[String]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
        command.current_dir(root()).args(["train", "--config", "configs/smoke.toml", "--check"]);
        command.args(settings.iter().flat_map(|setting| ["--set", setting]));
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let path = format!("model.path={:?}", folder.path().display().to_string());
    for settings in [vec![path.clone()], vec![path.clone(), "model.variant=fp16".into()]] {
        let (ok, said) = check(&settings);
        assert!(ok, "{said}");
    }
    let (ok, said) = check(&[path, "model.variant=bf16".into()]);
    assert!(!ok && said.contains("model.path: ") && said.contains("\"fp16\""), "{said}");
}
