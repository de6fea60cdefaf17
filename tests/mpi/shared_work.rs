//! What `prepare cache`, `evaluate`, `analyze` and `generate` leave does not depend on how many processes share the work.
use crate::generation;
use crate::job::{Job, has_mpirun};
use crate::smoke_run::{read, run};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
const MODEL: [&str; 4] = ["--model", "checkpoints/smoke-base", "--device", "cpu"];

/// `seg4diff` with these words.
fn program(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("RUST_LOG").args(words);
    command
}

/// The files below a folder.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
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

/// Runs what `command` makes for a folder, by one process, two and three, which must leave the same files in it, and print the
/// same where that is what was measured.
fn same_files(command: impl Fn(&Path) -> Command, least: usize) {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let alone = folder.path().join("alone");
    std::fs::create_dir(&alone).expect("folder");
    let measures = command(&alone).get_args().next().is_some_and(|word| word == "evaluate" || word == "analyze");
    let (output, said) = run(&mut command(&alone));
    assert!(output.status.success(), "{said}");
    let expected = files(&alone);
    assert!(expected.len() >= least, "{:?}", expected.keys());
    for size in [2, 3] {
        let together = folder.path().join(format!("by-{size}"));
        std::fs::create_dir(&together).expect("folder");
        let ended = Job::start(size, &command(&together)).end();
        assert_eq!(ended.status, Some(0), "{}", ended.said);
        if measures {
            let printed = [&ended.printed, &output.stdout].map(|bytes| String::from_utf8_lossy(bytes));
            assert_eq!(printed[0], printed[1], "{size} processes");
        }
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

#[test]
fn referring() {
    same_files(
        |folder| {
            let words = ["evaluate", "referring", "--layer", "1", "--size", "64", "--batch", "1"];
            let mut command = program(&[&words, &MODEL[..]].concat());
            command.arg("--phrases").arg(format!("{FIXTURES}/segmentation/phrases.jsonl"));
            command.arg("--images").arg(format!("{FIXTURES}/segmentation/images"));
            command.arg("--json").arg(folder.join("scores.json"));
            command
        },
        1,
    );
}

#[test]
fn clip_score() {
    same_files(
        |folder| {
            let mut command = program(&["evaluate", "clip-score", "--device", "cpu", "--batch", "1"]);
            for (flag, name) in [("--clip", "model"), ("--images", "images"), ("--captions", "captions.json")] {
                command.arg(flag).arg(format!("{FIXTURES}/clip/{name}"));
            }
            command.arg("--json").arg(folder.join("scores.json"));
            command
        },
        1,
    );
}

#[test]
fn feature_distances() {
    let world = tempfile::tempdir().expect("folder");
    for (folder, count) in [("real", 7), ("made", 4)] {
        for index in 0..count {
            let picture = generation::picture(&format!("{folder}{index}"), 40 + 8 * index, 50);
            let file = world.path().join(folder).join(format!("{index}.png"));
            seg4diff::sample::image::write_png(&file, &picture).expect("written");
        }
    }
    let inception = generation::write_inception(world.path(), &generation::inception_tensors());
    generation::write_classifier(&world.path().join("features"));
    same_files(
        |folder| {
            let mut command = program(&["evaluate", "fid", "--device", "cpu", "--batch", "2"]);
            for (flag, name) in [("--real", "real"), ("--generated", "made"), ("--features", "features")] {
                command.arg(flag).arg(world.path().join(name));
            }
            command.arg("--inception").arg(&inception).arg("--save-real").arg(folder.join("real.npz"));
            command.arg("--json").arg(folder.join("scores.json"));
            command
        },
        2,
    );
}

#[test]
fn generation_scores() {
    let world = tempfile::tempdir().expect("folder");
    generation::write_classifier(&world.path().join("features"));
    let captions = r#"{"a": "a blue square", "b": "a red circle", "c": "a green triangle on the left"}"#;
    std::fs::write(world.path().join("captions.json"), captions).expect("captions");
    same_files(
        |folder| {
            let mut command = program(&["evaluate", "generation", "--config", "configs/smoke.toml"]);
            let (world, images) = (world.path().display(), format!("{FIXTURES}/segmentation/images"));
            for setting in [
                format!("eval.images={images}"),
                format!("eval.captions={world}/captions.json"),
                format!("eval.features={world}/features"),
                "eval.generation_images=7".into(),
                "eval.size=64".into(),
                "eval.steps=2".into(),
                "eval.batch=2".into(),
            ] {
                command.args(["--set", &setting]);
            }
            command.arg("--out").arg(folder.join("drawn")).arg("--json").arg(folder.join("scores.json"));
            command
        },
        10,
    );
}

#[test]
fn blurred_drawings() {
    same_files(
        |folder| {
            let words = ["analyze", "--batch", "1", "--blur", "3", "--steps", "8", "--sheet"];
            let sheet = folder.join("sheet.png").display().to_string();
            on_labelled(&[&words[..], &[&sheet]].concat(), folder, false)
        },
        2,
    );
}
