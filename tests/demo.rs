//! The demo's run from end to end, shortened: draws scenes, measures, trains, measures again, compares and reports.
mod smoke_run;

use serde_json::Value;
use smoke_run::{read, run, succeed};
use std::path::{Path, PathBuf};
use std::process::Command;

/// `configs/demo.toml` on the smoke run's base, with few scenes, steps and pictures.
struct Demo {
    folder: tempfile::TempDir,
}

impl Demo {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    fn output(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The run into `output`, with further arguments.
    fn train(&self, output: &str, more: &[&str]) -> Command {
        let scenes = self.folder.path().join("scenes");
        let at = |part: &str| scenes.join(part).display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
        command.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("RUST_LOG").args(["--config", "configs/demo.toml"]);
        for (key, value) in [
            ("output", self.output(output).display().to_string()),
            ("scenes.folder", scenes.display().to_string()),
            ("scenes.train", "12".into()),
            ("scenes.test", "6".into()),
            ("scenes.val", "6".into()),
            ("model.path", "checkpoints/smoke-base".into()),
            ("model.expert_layer", "1".into()),
            ("data.source", format!("[{:?}]", at("train/images"))),
            ("data.labels", at("train/labels")),
            ("data.classes", at("train/classes.json")),
            ("train.steps", "4".into()),
            ("train.batch", "2".into()),
            ("checkpoint.every", "2".into()),
            ("eval.images", at("val/images")),
            ("eval.labels", at("val/labels")),
            ("eval.classes", at("val/classes.json")),
            ("eval.real", at("test/images")),
            ("eval.captions", at("test/captions.json")),
            ("eval.steps", "2".into()),
            ("eval.generation_images", "5".into()),
            ("eval.flow_images", "4".into()),
            ("eval.every", "2".into()),
            ("eval.every_images", "3".into()),
            ("eval.every_samples", "2".into()),
        ] {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        command.args(more);
        command
    }

    /// Validated steps and their scores.
    fn validations(&self, output: &str) -> Vec<(u64, Value)> {
        let text = read(self.output(output).join("metrics.jsonl"));
        let lines = text
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| -> Value { serde_json::from_slice(line).expect("JSON") });
        let found = lines.filter_map(|line| Some((line["step"].as_u64()?, line.get("validation")?.clone())));
        found.collect()
    }

    fn summary(&self, output: &str) -> Value {
        serde_json::from_slice(&read(self.output(output).join("summary.json"))).expect("JSON")
    }
}

const COMPARE: [&str; 2] = ["--set", "eval.compare_without_masks=true"];

#[test]
fn the_run_measures_before_after_and_without_masks() {
    let demo = Demo::new();
    let (output, said) = run(&mut demo.train("run", &COMPARE));
    assert!(output.status.success(), "{said}");
    let table = String::from_utf8_lossy(&output.stdout);
    let rows: Vec<&str> = table.lines().filter_map(|line| line.split("  ").next()).collect();
    assert_eq!(rows[1..], ["base", "after", "without masks"], "{table}");
    assert!(["mIoU", "FD-demo", "held-out flow loss"].iter().all(|name| table.contains(name)), "{table}");
    let summary = demo.summary("run");
    for stage in ["before", "after", "without_masks"] {
        for metric in ["miou", "pixel_accuracy", "fd_demo", "held_out_flow"] {
            assert!(summary[stage][metric].as_f64().is_some_and(f64::is_finite), "{stage} {metric}: {summary}");
        }
    }
    // The runs differ by their losses alone: equal scenes, equal noise.
    assert_ne!(summary["after"]["held_out_flow"], summary["without_masks"]["held_out_flow"]);
    let first = |output: &str| -> Value {
        let lines = read(demo.output(output).join("metrics.jsonl"));
        serde_json::from_slice(lines.split(|byte| *byte == b'\n').next().expect("a line")).expect("JSON")
    };
    let (with, without) = (first("run"), first("run/without_masks"));
    assert_eq!(with["flow"], without["flow"]);
    assert!(with["loss"].as_f64() > with["flow"].as_f64() && without["loss"] == without["flow"], "{with} {without}");
    for file in ["report.html", "lora.safetensors", "without_masks/lora.safetensors", "samples/segmentation.png"] {
        assert!(demo.output("run").join(file).is_file(), "{file}");
    }
    for stage in ["before", "after", "without_masks"] {
        assert!(demo.output("run").join("samples").join(stage).join("000004.png").is_file(), "{stage}");
    }
    // Again with one worker and one thread, reusing what is drawn: equal to the last digit.
    let mut again = demo.train("again", &COMPARE);
    again.args(["--set", "data.workers=1"]).env("RAYON_NUM_THREADS", "1");
    succeed(&mut again);
    assert_eq!(summary, demo.summary("again"));
    assert!(same(&demo.output("run"), &demo.output("again"), "lora.safetensors"));
}

/// Validation during training is reported, does not change the training, and determines the best step.
#[test]
fn validations_are_shown_and_change_nothing() {
    let demo = Demo::new();
    let (output, said) = run(&mut demo.train("with", &["--set", "eval.best_by=held_out_flow"]));
    assert!(output.status.success(), "{said}");
    assert!(said.contains("step 2: mIoU") && said.contains("the best so far"), "{said}");
    succeed(&mut demo.train("without", &["--set", "eval.every=0"]));
    assert!(same(&demo.output("with"), &demo.output("without"), "lora.safetensors"));
    assert_eq!(demo.summary("with"), demo.summary("without"));

    let flows = demo.validations("with");
    let steps: Vec<u64> = flows.iter().map(|(step, _)| *step).collect();
    assert_eq!((steps, demo.validations("without").len()), (vec![2, 4], 0));
    let (best, _) = flows
        .iter()
        .min_by(|a, b| a.1["held_out_flow"].as_f64().partial_cmp(&b.1["held_out_flow"].as_f64()).expect("numbers"))
        .expect("one");
    let state: Value = serde_json::from_slice(&read(demo.output("with/best/state.json"))).expect("JSON");
    assert_eq!(state["state"]["step"], *best);
    for file in ["lora-best.safetensors", "validation/step-000002-samples.png", "validation/step-000004-attention.png"]
    {
        assert!(demo.output("with").join(file).is_file(), "{file}");
    }
    assert!(std::fs::read_dir(demo.output("with/tensorboard")).expect("a folder").count() == 1);
    let page = String::from_utf8(read(demo.output("with/report.html"))).expect("text");
    assert!(page.contains("While it was trained") && page.contains("Step 4: mIoU"));
    // The best checkpoint is a complete checkpoint.
    let mut export = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    let out = demo.output("exported.safetensors");
    export
        .args(["export", "--format", "diffusers", "--checkpoint"])
        .arg(demo.output("with/best"))
        .arg("--out")
        .arg(&out);
    succeed(export.current_dir(env!("CARGO_MANIFEST_DIR")));
    assert!(read(out) == read(demo.output("with/lora-best.safetensors")));
}

#[test]
fn a_stopped_run_ends_with_the_same_numbers() {
    let demo = Demo::new();
    succeed(&mut demo.train("whole", &[]));
    // Checkpoints and files of a run that was killed after step 2.
    succeed(&mut demo.train("cut", &["--set", "eval.before=false"]));
    std::fs::remove_dir_all(demo.output("cut/checkpoints/step-000004")).expect("a checkpoint");
    std::fs::remove_file(demo.output("cut/lora.safetensors")).expect("a LoRA");
    succeed(&mut demo.train("cut", &["--resume"]));
    assert_eq!(demo.summary("whole"), demo.summary("cut"));
    assert!(same(&demo.output("whole"), &demo.output("cut"), "lora.safetensors"));
    assert!(same(&demo.output("whole"), &demo.output("cut"), "lora-best.safetensors"));
    assert_eq!(demo.validations("whole"), demo.validations("cut"));
}

#[test]
fn scenes_of_other_settings_are_not_mistaken() {
    let demo = Demo::new();
    succeed(&mut demo.train("first", &["--set", "train.steps=1"]));
    let (output, said) = run(&mut demo.train("second", &["--set", "scenes.seed=8"]));
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("scenes/train") && said.contains("other scenes"), "{said}");
    assert!(!demo.output("second/metrics.jsonl").exists());
}

/// `--check` draws nothing, and accepts missing files that the run will draw.
#[test]
fn a_check_leaves_nothing_behind() {
    let demo = Demo::new();
    succeed(&mut demo.train("run", &["--check"]));
    assert_eq!(std::fs::read_dir(demo.folder.path()).expect("a folder").count(), 0);
}

fn same(a: &Path, b: &Path, file: &str) -> bool {
    read(a.join(file)) == read(b.join(file))
}
