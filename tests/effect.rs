//! A run that trained nothing must not end as if it had, and ties between checkpoints are broken the same way in
//! interrupted runs.
mod model_folder;
mod smoke_run;

use candle_core::Tensor;
use serde_json::Value;
use smoke_run::{Run, read, run as run_to_end, succeed};
use std::path::Path;
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const SETTINGS: &[&str] = &["train.steps=4", "train.batch=2", "data.resolution=64", "checkpoint.every=2"];

/// A copy of the smoke run's base model with one changed number in a tensor.
fn spoilt(folder: &Path, file: &str, tensor: &str, number: f32) -> String {
    model_folder::copy(&Path::new(ROOT).join("checkpoints/smoke-base"), folder);
    model_folder::edit_tensors(&folder.join(file), |tensors| {
        let old = &tensors[tensor];
        let mut values: Vec<f32> = old.flatten_all().and_then(|flat| flat.to_vec1()).expect("values");
        values[7] = number;
        let new = Tensor::from_vec(values, old.shape(), old.device()).expect("tensor");
        tensors.insert(tensor.into(), new);
    });
    format!("model.path={}", folder.display())
}

const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";
const VALUES: &str = "transformer_blocks.0.attn.to_v.weight";

/// `train` fails with status 1 and one error that has all of `parts`, and leaves no trained files.
fn fails(run: &Run, more: &[&str], parts: &[&str]) {
    let (output, said) = run_to_end(&mut run.train(more));
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
    parts.iter().for_each(|part| assert!(said.contains(part), "{part} in {said}"));
    for file in ["lora.safetensors", "lora-best.safetensors", "best", "report.html"] {
        assert!(!run.path(file).exists(), "{file}");
    }
}

/// Stored numbers that are finite but overflow in computation; fewer steps than `max_nonfinite`.
#[test]
fn a_run_in_which_no_step_counted_fails() {
    let folder = tempfile::tempdir().expect("folder");
    let model = spoilt(folder.path(), TRANSFORMER, VALUES, f32::MAX);
    let run = Run::new(&[SETTINGS, &[&model]].concat());
    let parts = ["nothing was trained", "none of the 4 steps had a finite loss and gradient", "step 4: loss"];
    fails(&run, &["--set", "train.max_nonfinite=9"], &parts);
    // Resumed from the middle, and from the end: the whole run counts.
    let from = run.path("checkpoints/step-000002").display().to_string();
    fails(&run, &["--set", "train.max_nonfinite=9", "--resume", &from], &parts);
    fails(&run, &["--set", "train.max_nonfinite=9", "--resume"], &parts[..2]);
    // One finite step makes a run, with or without the neighbouring checkpoints.
    let sound = format!("model.path={ROOT}/checkpoints/smoke-base");
    run.finish(&["--resume", &from, "--force=model", "--set", &sound]);
}

#[test]
fn a_run_that_moved_nothing_fails_and_says_why() {
    // No image has so little noise.
    let settings = ["loss.flow_weight=0", "loss.mask_max_sigma=1e-9"];
    let run = Run::new(&[SETTINGS, &settings].concat());
    fails(&run, &[], &["nothing was trained", "as it was at the start", "every gradient was 0"]);
    fails(&run, &["--resume"], &["every gradient was 0"]);
    // f32 numbers whose products overflow.
    for settings in [["optim.clip_norm=1e-44", "optim.warmup_steps=0"], ["optim.eps=1e38", "optim.lr=1e-8"]] {
        let run = Run::new(&[SETTINGS, &settings].concat());
        fails(&run, &[], &["as it was at the start", "too small for f32", "optim.clip_norm"]);
    }
}

/// One number that is not finite, in every kind of weights file: tensor and file are named before anything is trained
/// or drawn.
#[test]
fn weights_that_are_not_finite_are_named() {
    for (file, tensor, number, written) in [
        (TRANSFORMER, VALUES, f32::NAN, "NaN"),
        ("vae/diffusion_pytorch_model.safetensors", "encoder.conv_in.weight", f32::INFINITY, "inf"),
        ("text_encoder/model.safetensors", "text_model.final_layer_norm.weight", f32::NEG_INFINITY, "-inf"),
    ] {
        let folder = tempfile::tempdir().expect("folder");
        let model = spoilt(folder.path(), file, tensor, number);
        let run = Run::new(&[SETTINGS, &[&model]].concat());
        fails(&run, &[], &[&format!("{file}: tensor {tensor}: value 7 is {written}, not finite")]);
        assert!(!run.path("metrics.jsonl").exists() && !run.path("checkpoints").exists());
    }
}

#[test]
fn numbers_that_the_asked_for_type_cannot_hold_are_named() {
    let folder = tempfile::tempdir().expect("folder");
    spoilt(folder.path(), TRANSFORMER, VALUES, -65_520.0);
    let draw = |dtype: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
        command.current_dir(&folder).args("generate --device cpu --size 64 --steps 1 --prompt x".split(' '));
        command.args(["--dtype", dtype, "--out", dtype, "--model"]).arg(folder.path());
        command
    };
    let (output, said) = run_to_end(&mut draw("f16"));
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("{TRANSFORMER}: tensor {VALUES}: value 7 is -65520, too large for f16")), "{said}");
    succeed(&mut draw("bf16"));
}

/// A LoRA with infinite values is refused when it is read, and a checkpoint of it when a run is resumed.
#[test]
fn adapters_that_are_not_finite_are_named() {
    let run = Run::new(SETTINGS);
    run.finish(&[]);
    let name = "transformer.transformer_blocks.1.attn.to_k.lora_B.weight";
    let lora = run.path("lora.safetensors");
    model_folder::edit_tensors(&lora, |tensors| {
        let old = tensors.get(name).unwrap_or_else(|| panic!("{:?}", tensors.keys()));
        let new = old.affine(0.0, f64::INFINITY).expect("tensor");
        tensors.insert(name.into(), new);
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.args("generate --device cpu --size 64 --steps 1 --prompt x --model".split(' '));
    command.arg(format!("{ROOT}/checkpoints/smoke-base")).arg("--out").arg(run.path("out")).arg("--lora").arg(&lora);
    let (output, said) = run_to_end(&mut command);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("lora.safetensors: tensor {name}: value 0 is inf")), "{said}");
}

/// Of tied validations, the first is the best, also in a run that is stopped and resumed.
#[test]
fn of_equal_validations_the_first_is_the_best_across_a_resume() {
    let folder = tempfile::tempdir().expect("folder");
    let mut scenes = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    scenes.args("prepare scenes --count 4 --size 64 --out".split(' ')).arg(folder.path().join("scenes"));
    succeed(&mut scenes);
    let at = |key: &str, name: &str| format!("{key}={}", folder.path().join("scenes").join(name).display());
    let data = [at("eval.images", "images"), at("eval.labels", "labels"), at("eval.classes", "classes.json")];
    // Steps too small to change the scores. With this seed, serde_json's fast float parser would read the mean IoU one
    // unit lower.
    let settings = ["optim.lr=1e-20", "eval.every=1", "eval.every_images=4", "eval.before=false", "eval.seed=35"];
    let data: Vec<&str> = data.iter().map(String::as_str).collect();
    let run = Run::new(&[SETTINGS, &settings, &data].concat());
    run.finish(&[]);
    let text = String::from_utf8(read(run.path("metrics.jsonl"))).expect("text");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(lines.iter().all(|line| line["validation"]["miou"].is_number()), "{text}");
    assert!(lines.iter().all(|line| line["validation"] == lines[0]["validation"]), "they are to tie: {text}");
    let best =
        || serde_json::from_slice::<Value>(&read(run.path("best/state.json"))).expect("JSON")["state"]["step"].take();
    assert_eq!(best(), 1);
    let lora = read(run.path("lora-best.safetensors"));
    let middle = run.path("checkpoints/step-000002").display().to_string();
    succeed(&mut run.train(&["--resume", &middle]));
    assert_eq!(best(), 1);
    assert!(read(run.path("lora-best.safetensors")) == lora);
}
