//! What `prepare cache`, `evaluate`, `analyze` and `generate` leave does not depend on how many processes share the work.
use crate::job::{Job, has_mpirun};
use crate::smoke_run::{read, succeed};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const MODEL: [&str; 4] = ["--model", "checkpoints/smoke-base", "--device", "cpu"];

/// `seg4diff` with these words.
fn program(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("RUST_LOG").args(words);
    command
}

/// The files below a folder.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path()) {
        match entry.is_dir() {
            true => found.extend(
                files(&entry)
                    .into_iter()
                    .map(|(path, bytes)| (Path::new(entry.file_name().expect("name")).join(path), bytes)),
            ),
            false => drop(found.insert(PathBuf::from(entry.file_name().expect("name")), read(&entry))),
        }
    }
    found
}

/// Runs what `command` makes for a folder, by one process and by three, which must leave the same files in it.
fn same_files(command: impl Fn(&Path) -> Command, least: usize) {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let alone = folder.path().join("alone");
    std::fs::create_dir(&alone).expect("folder");
    succeed(&mut command(&alone));
    let expected = files(&alone);
    assert!(expected.len() >= least, "{:?}", expected.keys());
    for size in [2, 3] {
        let together = folder.path().join(format!("by-{size}"));
        std::fs::create_dir(&together).expect("folder");
        Job::start(size, &command(&together)).end().succeeded();
        let found = files(&together);
        assert!(found.keys().eq(expected.keys()), "{:?}", found.keys());
        for (name, bytes) in &expected {
            assert!(found[name] == *bytes, "{} differs by {size} processes", name.display());
        }
    }
}

#[test]
fn a_cache() {
    same_files(
        |folder| {
            let mut command = program(&["prepare", "cache", "--config", "configs/smoke.toml", "--shard-size", "1"]);
            command.args(["--set", "data.resolution=128", "--out"]).arg(folder);
            command
        },
        2,
    );
}

fn on_labelled(words: &[&str], folder: &Path, predictions: bool) -> Command {
    let data = "tests/fixtures/segmentation";
    let mut command = program(&[words, &MODEL, &["--size", "64"]].concat());
    command.args(["--images", &format!("{data}/images"), "--labels", &format!("{data}/labels")]);
    command.args(["--classes", &format!("{data}/classes.json"), "--json"]).arg(folder.join("scores.json"));
    if predictions {
        command.arg("--predictions").arg(folder.join("predictions"));
    }
    command
}

#[test]
fn segmentation() {
    same_files(|folder| on_labelled(&["evaluate", "segmentation", "--layer", "1", "--batch", "1"], folder, true), 3);
}

#[test]
fn unsupervised_segmentation() {
    let words = ["evaluate", "unsupervised", "--layer", "1", "--batch", "1", "--threshold", "0.02,0.1"];
    same_files(|folder| on_labelled(&words, folder, true), 3);
}

#[test]
fn analysis() {
    same_files(|folder| on_labelled(&["analyze", "--batch", "1"], folder, false), 1);
}

#[test]
fn drawings() {
    same_files(
        |folder| {
            let mut command = program(&[&["generate", "--size", "64", "--steps", "2"], &MODEL[..]].concat());
            for prompt in ["a cat", "a dog", "two birds", "a house", "a tree"] {
                command.args(["--prompt", prompt]);
            }
            command.arg("--out").arg(folder);
            command
        },
        7,
    );
}
