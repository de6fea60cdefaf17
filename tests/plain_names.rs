//! Names that files give to other files, through the real binary: nothing outside the folder is read, made or linked.
mod folder_copy;

use std::path::Path;
use std::process::Command;

fn refused(folder: &Path, args: &[&str], parts: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_seg4diff")).current_dir(folder).args(args).output().expect("run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{said}");
    parts.iter().for_each(|part| assert!(said.contains(part), "{part:?} is not said: {said}"));
}

const NAMES: [&str; 8] = ["../outside.safetensors", "/etc/hostname", "a/../../b", ".", "..", "", "a\\\\b", "a\\u0000b"];

#[test]
fn an_index_of_shards_names_plain_files() {
    let folder = tempfile::tempdir().expect("folder");
    let model = folder.path().join("model");
    folder_copy::copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints/smoke-base"), &model);
    let weights = model.join("transformer/diffusion_pytorch_model.safetensors");
    std::fs::rename(&weights, folder.path().join("outside.safetensors")).expect("move");
    let index = model.join("transformer/diffusion_pytorch_model.safetensors.index.json");
    let config = "output = \"run\"\n[model]\npath = \"model\"\nexpert_layer = 1\n[data]\nsource = [\"x.tar\"]\n";
    std::fs::write(folder.path().join("c.toml"), config).expect("write");
    for name in NAMES {
        std::fs::write(&index, format!("{{\"weight_map\": {{\"a.weight\": \"{name}\"}}}}")).expect("write");
        let parts = ["diffusion_pytorch_model.safetensors.index.json", "a.weight", "is no plain name"];
        refused(
            folder.path(),
            &["generate", "--model", "model", "--prompt", "cat", "--size", "64", "--out", "out"],
            &parts,
        );
        refused(folder.path(), &["train", "--config", "c.toml", "--check"], &parts);
    }
}

#[test]
fn phrases_name_images_within_their_folder() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    folder_copy::copy(&root.join("checkpoints/smoke-base"), &folder.path().join("model"));
    std::fs::create_dir(folder.path().join("images")).expect("folder");
    for name in NAMES {
        let line = r#", "phrase": "cat", "mask": {"size": [2, 2], "counts": [1, 3]}}"#;
        std::fs::write(folder.path().join("p.jsonl"), format!("{{\"image\": \"{name}\"{line}\n")).expect("write");
        let args = ["evaluate", "referring", "--model", "model", "--layer", "1", "--size", "64", "--images", "images"];
        let args = [&args[..], &["--phrases", "p.jsonl"]].concat();
        refused(folder.path(), &args, &["p.jsonl", "line 1", "is no plain name"]);
    }
}
