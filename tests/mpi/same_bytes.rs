//! `W` processes with `accumulate = A` leave the bytes of one with `accumulate = W·A`.
use crate::job::{Job, has_mpirun};
use crate::outcome::Outcome;
use crate::smoke_run::{Run, read, run as run_to_end, succeed};
use std::path::Path;
use std::process::Command;

const SHARED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/coco128");
const COMMON: [&str; 7] = [
    "train.steps=8",
    "train.batch=2",
    "data.resolution=64",
    "checkpoint.every=4",
    "checkpoint.keep=0",
    "data.flip=true",
    "data.caption_dropout=0.2",
];

fn accumulate(count: usize) -> String {
    format!("train.accumulate={count}")
}

fn alone(settings: &[&str], count: usize) -> (Run, Outcome) {
    let run = Run::new(settings);
    run.finish(&["--set", &accumulate(count)]);
    let outcome = Outcome::of(&run, 8);
    (run, outcome)
}

#[test]
fn of_both_losses_with_and_without_a_cache() {
    if !has_mpirun() {
        return;
    }
    let cache = tempfile::tempdir().expect("folder");
    let mut prepare = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    prepare.current_dir(env!("CARGO_MANIFEST_DIR")).args(["prepare", "cache", "--config", "configs/smoke.toml"]);
    prepare.args(["--set", "data.resolution=64", "--out"]).arg(cache.path());
    succeed(&mut prepare);
    let cache = format!("data.cache={}", cache.path().display());
    for (size, count, settings) in [
        (2, 2, vec!["optim.clip_norm=0.001"]),
        (3, 1, vec!["loss.alignment=\"softmax\"", &cache]),
        (3, 2, vec!["loss.flow_weight=0.0", "data.workers=1"]),
    ] {
        let settings = [&COMMON[..], &settings].concat();
        let (_, expected) = alone(&settings, size * count);
        let run = Run::new(&settings);
        let said = Job::start(size, &run.train(&["--set", &accumulate(count)])).end().succeeded();
        Outcome::of(&run, 8).check(&expected, &format!("{size} processes of {count}, {settings:?}"));
        assert_eq!(said.matches("wrote ").count(), 2, "{said}");
    }
}

/// Broken samples move all that follow: the processes agree on who trains on what.
#[test]
fn with_broken_samples() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    for shard in ["sa_000000.tar", "sa_000001.tar"] {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/smoke").join(shard);
        let mut archive = tar::Archive::new(std::fs::File::open(source).expect("shard"));
        let mut out = tar::Builder::new(std::fs::File::create(folder.path().join(shard)).expect("shard"));
        for (number, entry) in archive.entries().expect("entries").enumerate() {
            let mut entry = entry.expect("entry");
            let mut bytes = vec![];
            std::io::Read::read_to_end(&mut entry, &mut bytes).expect("bytes");
            let path = entry.path().expect("path").into_owned();
            if number % 5 == 0 && path.extension().is_some_and(|kind| kind == "jpg" || kind == "png") {
                bytes.truncate(20);
            }
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            out.append_data(&mut header, path, &bytes[..]).expect("written");
        }
        out.finish().expect("finished");
    }
    let source = format!("data.source=[\"{}/sa_*.tar\"]", folder.path().display());
    let settings = [&COMMON[..], &[&source, "data.max_broken=0.9"]].concat();
    let (_, expected) = alone(&settings, 6);
    assert!(expected.state["counters"]["broken"].as_u64().is_some_and(|broken| broken > 2), "{}", expected.state);
    for (size, count) in [(2, 3), (3, 2)] {
        let run = Run::new(&settings);
        Job::start(size, &run.train(&["--set", &accumulate(count)])).end().succeeded();
        Outcome::of(&run, 8).check(&expected, &format!("{size} processes"));
    }
}

#[test]
fn of_photographs() {
    if !has_mpirun() {
        return;
    }
    if !Path::new(SHARED).is_dir() {
        return eprintln!("{SHARED} is missing: nothing was compared");
    }
    let source = format!("data.source=[\"{SHARED}/sa1b/*.tar\"]");
    let captions = format!("data.captions={SHARED}/sa1b/captions.json");
    let settings = [&COMMON[..], &[&source, &captions]].concat();
    let (_, expected) = alone(&settings, 6);
    let run = Run::new(&settings);
    Job::start(3, &run.train(&["--set", &accumulate(2)])).end().succeeded();
    Outcome::of(&run, 8).check(&expected, "three processes");
    let mut command = run.train(&["--set", &accumulate(3), "--resume"]);
    Job::start(2, command.arg(run.path("checkpoints/step-000004"))).end().succeeded();
    Outcome::of(&run, 8).check(&expected, "resumed by two");
}

/// The position that is saved is that of all processes, so that any number of them goes on.
#[test]
fn resumed_by_any_number() {
    if !has_mpirun() {
        return;
    }
    let settings = [&COMMON[..], &["train.batch=1"]].concat();
    let (_, expected) = alone(&settings, 12);
    let run = Run::new(&settings);
    Job::start(3, &run.train(&["--set", &accumulate(4)])).end().succeeded();
    let middle = run.path("checkpoints/step-000004");
    for size in [1, 2, 3, 4] {
        let mut command = run.train(&["--set", &accumulate(12 / size), "--resume"]);
        command.arg(&middle);
        match size {
            1 => drop(succeed(&mut command)),
            size => drop(Job::start(size, &command).end().succeeded()),
        }
        Outcome::of(&run, 8).check(&expected, &format!("resumed by {size}"));
    }
    // Another number of images a step is another training.
    let mut command = run.train(&["--set", &accumulate(3), "--resume"]);
    let (output, said) = run_to_end(command.arg(&middle));
    assert_eq!(output.status.code(), Some(2), "{said}");
    let arithmetic = "train.batch · train.accumulate · processes: 1 · 4 · 3 = 12 in the checkpoint, 1 · 3 · 1 = 3 now; \
                      train.accumulate = 12 gives as many";
    assert!(said.contains(arithmetic), "{said}");
    assert!(read(run.path("lora.safetensors")).len() > 1000);
}
