//! What `[eval]` measures in a run does not depend on how many processes train together.
use crate::job::{Job, has_mpirun};
use crate::outcome::Outcome;
use crate::shared_work::files;
use crate::smoke_run::{Run, read};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const STEPS: u64 = 6;

/// Captions of the pictures that are measured on.
fn captions(folder: &Path) -> PathBuf {
    let file = folder.join("captions.json");
    let captions = r#"{"a square": "a square", "nothing": "nothing at all", "tall.v2": "something tall", "tiny": "a dot",
        "wide": "something wide", "zebra": "a zebra"}"#;
    std::fs::write(&file, captions).expect("captions");
    file
}

fn settings(captions: &Path, more: &[&str]) -> Vec<String> {
    let data = "tests/fixtures/segmentation";
    let mut settings: Vec<String> = [
        "train.steps=6",
        "train.batch=1",
        "data.resolution=64",
        "checkpoint.every=3",
        "eval.features=checkpoints/demo-features",
        "eval.size=64",
        "eval.steps=2",
        "eval.batch=1",
        "eval.generation_images=5",
        "eval.flow_images=5",
        "eval.analysis_images=4",
        "eval.every=2",
        "eval.every_images=5",
        "eval.every_samples=3",
    ]
    .iter()
    .chain(more)
    .map(|setting| setting.to_string())
    .collect();
    settings.extend(["images", "labels"].map(|name| format!("eval.{name}={data}/{name}")));
    settings.push(format!("eval.classes={data}/classes.json"));
    settings.push(format!("eval.captions={}", captions.display()));
    settings
}

fn run(settings: &[String]) -> Run {
    Run::new(&settings.iter().map(String::as_str).collect::<Vec<_>>())
}

/// What the run has left, without what tells of times and places; of its page the pictures.
fn left(run: &Run) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = files(&run.path(""));
    let depends = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        ["config.toml", "metrics.jsonl", "state.json"].contains(&name) || path.starts_with("tensorboard")
    };
    found.retain(|path, _| !depends(path));
    let page = found.get_mut(Path::new("report.html")).expect("a page");
    let text = String::from_utf8_lossy(page).into_owned();
    let pictures: Vec<&str> = text.split("src=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(pictures.len() > 20, "{}", pictures.len());
    *page = pictures.join("\n").into_bytes();
    found
}

#[test]
fn validation_and_measurements_are_shared() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let settings = settings(&captions(folder.path()), &[]);
    let alone = run(&settings);
    alone.finish(&["--set", "train.accumulate=6"]);
    let (expected, files) = (Outcome::of(&alone, STEPS), left(&alone));
    assert!(
        expected.metrics.iter().filter(|step| !step["validation"].is_null()).count() == 3,
        "{:?}",
        expected.metrics
    );
    for part in ["validation/", "samples/before/", "samples/after/", "best/adapter.safetensors", "lora-best."] {
        assert!(files.keys().any(|path| path.to_string_lossy().starts_with(part)), "{part}: {:?}", files.keys());
    }
    for (size, accumulate) in [(2, 3), (3, 2)] {
        let together = run(&settings);
        let command = together.train(&["--set", &format!("train.accumulate={accumulate}")]);
        Job::start(size, &command).end().succeeded();
        Outcome::of(&together, STEPS).check(&expected, &format!("{size} processes"));
        let found = left(&together);
        assert!(found.keys().eq(files.keys()), "{:?}", found.keys());
        for (name, bytes) in &files {
            assert!(found[name] == *bytes, "{} differs by {size} processes", name.display());
        }
        let summary = |run: &Run| String::from_utf8_lossy(&read(run.path("report.html"))).matches("FD-demo").count();
        assert_eq!(summary(&together), summary(&alone));
    }
}

/// Any process may be the one that is asked to stop while all measure.
#[test]
fn asked_to_stop_while_measuring() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let run = run(&settings(&captions(folder.path()), &["eval.generation_images=2000"]));
    let job = Job::start(3, &run.train(&[]));
    let started = Instant::now();
    while !run.path("data.json").exists() {
        assert!(started.elapsed() < Duration::from_secs(120), "no run");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(700));
    // SAFETY: the call has no effect but on the process.
    unsafe { libc::kill(job.process(1).expect("a process"), libc::SIGTERM) };
    let said = job.end().succeeded();
    assert!(said.contains("stopped before training"), "{said}");
    assert!(!run.path("lora.safetensors").exists());
}
