//! Settings beyond the released recipes, in whole runs: trained files, bit-exact resume and recomputation; runs that
//! start from another run's adapter and score head; checkpoints of older versions.
mod outcome;
mod smoke_run;
mod tensor_edit;

use candle_core::{DType, Device, Tensor};
use outcome::Outcome;
use seg4diff::model::text::{TextEncoders, prompt_file};
use seg4diff::model::weights::files::ModelFiles;
use seg4diff::model::weights::read_all;
use serde_json::Value;
use sha2::{Digest, Sha256};
use smoke_run::{Run, read, run as run_to_end, succeed};
use std::path::Path;
use std::process::Command;

const STEPS: u64 = 6;
const SETTINGS: &[&str] = &["train.steps=6", "train.batch=2", "checkpoint.every=3", "data.resolution=64"];

fn finished(settings: &[&str]) -> Run {
    let run = Run::new(&[SETTINGS, settings].concat());
    run.finish(&[]);
    run
}

/// A run ends with equal bytes with all blocks recomputed, on one thread, and resumed in the middle.
fn every_way_is_the_same(settings: &[&str]) -> Run {
    let plain = finished(settings);
    let expected = Outcome::of(&plain, STEPS);
    let again = finished(&[settings, &["train.gradient_checkpointing=true", "data.workers=1"]].concat());
    expected.check(&Outcome::of(&again, STEPS), "blocks computed again");
    let middle = plain.checkpoint(3, "").display().to_string();
    succeed(plain.train(&["--resume", &middle]).env("RAYON_NUM_THREADS", "1"));
    expected.check(&Outcome::of(&plain, STEPS), "resumed");
    plain
}

fn refused(run_of: &Run, more: &[&str]) -> String {
    let (output, said) = run_to_end(&mut run_of.train(more));
    assert_eq!(output.status.code(), Some(2), "{said}");
    said
}

#[test]
fn several_experts() {
    let run = every_way_is_the_same(&["model.expert_layers=[0,1]"]);
    let report = String::from_utf8(read(run.path("report.html"))).expect("text");
    assert!(report.contains("blocks 0, 1"), "the report says which");
    let one = Outcome::of(&finished(&[]), STEPS);
    assert!(one != Outcome::of(&run, STEPS), "the second expert has no part in it");
}

#[test]
fn the_strongest_head_of_a_softmax() {
    every_way_is_the_same(&["loss.heads=max", "loss.attention=softmax", "loss.match_max_cost=0.9"]);
}

/// A learnt prompt starts from the empty prompt's tokens; captions are not used.
#[test]
fn a_learnt_prompt() {
    let learnt = ["model.learnable_prompt=true"];
    let run = every_way_is_the_same(&learnt);
    let expected = Outcome::of(&run, STEPS);
    expected.check(&Outcome::of(&finished(&[&learnt[..], &["data.captions=README.md"]].concat()), STEPS), "captions");

    let cache = tempfile::tempdir().expect("folder");
    let mut fill = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    fill.current_dir(env!("CARGO_MANIFEST_DIR"));
    fill.args(["prepare", "cache", "--config", "configs/smoke.toml", "--set", "data.resolution=64", "--out"]);
    succeed(fill.arg(cache.path()));
    let cached = format!("data.cache={}", cache.path().display());
    expected.check(&Outcome::of(&finished(&[learnt[0], &cached]), STEPS), "from a cache");

    let files = ModelFiles::open("checkpoints/smoke-base").expect("model");
    let kinds = [seg4diff::config::TextEncoderKind::ClipL, seg4diff::config::TextEncoderKind::ClipG];
    let empty = TextEncoders::load(&files, &kinds, 77, DType::F32, &Device::Cpu).and_then(|text| text.encode(&[""]));
    let empty = empty.expect("encoders");
    let written = read_all(&run.path("prompt.safetensors")).expect("prompt.safetensors");
    let kept = read_all(&run.checkpoint(STEPS, "adapter.safetensors")).expect("checkpoint");
    let values = |tensor: &Tensor| tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("values");
    assert_eq!(written["tokens"].dims(), [154, 64]);
    assert_eq!(values(&written["tokens"]), values(&kept["prompt.tokens"]));
    assert_eq!(values(&written["pooled"]), values(&empty.pooled));
    let (start, end) = (values(&empty.context), values(&written["tokens"]));
    let moved = start.iter().zip(&end).filter(|(a, b)| a != b).count();
    let furthest = start.iter().zip(&end).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(moved > start.len() / 2 && furthest < 0.01, "{moved} of {} moved, by {furthest} at most", start.len());

    // When drawing, the learnt prompt replaces the prompt.
    let file = |name: &str, tokens: &Tensor| {
        let file = run.path(name);
        prompt_file::write(&file, tokens, &empty.pooled.squeeze(0).expect("pooled")).expect("write");
        file.display().to_string()
    };
    let start = file("start.safetensors", &empty.context.squeeze(0).expect("context"));
    let large = file("large.safetensors", &(&written["tokens"] * 3.0).expect("tensor"));
    let from_nothing = drawn(&[]);
    // The multiplicity of the last token changes and sums run in another order: a value on the edge between two of 256
    // may round differently.
    let given = drawn(&["--prompt-tokens", &start]);
    let off: Vec<u8> = given.iter().zip(&from_nothing).map(|(a, b)| a.abs_diff(*b)).filter(|off| *off > 0).collect();
    assert!(
        off.iter().all(|off| *off == 1) && off.len() < given.len() / 100,
        "{} of {} values differ: {off:?}",
        off.len(),
        given.len()
    );
    assert!(drawn(&["--prompt-tokens", &large]) != from_nothing, "another embedding draws another picture");
    let (output, said) =
        run_to_end(&mut generate(&["--prompt-tokens", &start, "--max-sequence-length", "256"], cache.path()));
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("a prompt of 154 tokens, expected 333: --max-sequence-length 77 fits"), "{said}");
    let lora = run.path("lora.safetensors").display().to_string();
    let (output, said) = run_to_end(&mut generate(&["--prompt-tokens", &lora], cache.path()));
    assert!(output.status.code() == Some(1) && said.contains("no learnt prompt"), "{said}");
}

/// `generate` with the smoke base model and the empty prompt.
fn generate(more: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("RUST_LOG");
    command.args(["generate", "--model", "checkpoints/smoke-base", "--prompt", "", "--size", "64", "--steps", "2"]);
    if !more.contains(&"--max-sequence-length") {
        command.args(["--max-sequence-length", "77"]);
    }
    command.args(more).arg("--out").arg(folder);
    command
}

fn drawn(more: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("folder");
    succeed(&mut generate(more, folder.path()));
    image::open(folder.path().join("000000.png")).expect("a picture").into_rgb8().into_raw()
}

/// With a learning rate near zero, the result is the initial state.
#[test]
fn training_from_an_adapter() {
    let first = finished(&[]);
    let (lora, checkpoint) = (first.path("lora.safetensors"), first.checkpoint(STEPS, ""));
    let from = format!("lora.init={}", lora.display());
    let head = format!("loss.score_head_init={}", checkpoint.display());
    let second = finished(&[&from, &head, "optim.lr=1e-7"]);
    let tensors = |run: &Run| read_all(&run.checkpoint(STEPS, "adapter.safetensors")).expect("checkpoint");
    let values = |tensor: &Tensor| tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("values");
    for (name, tensor) in tensors(&first) {
        let (start, end) = (values(&tensor), values(&tensors(&second)[&name]));
        // Six steps of AdamW, each at most the learning rate.
        let furthest = start.iter().zip(&end).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let size = start.iter().map(|value| value.abs()).fold(0.0, f32::max);
        assert!(furthest <= 1e-6 && size > 1e-5, "{name}: of {size} to {furthest} from it");
    }

    // It resumes like any run; the initial adapter may have moved, but its content must be equal.
    let expected = Outcome::of(&second, STEPS);
    let middle = second.checkpoint(3, "").display().to_string();
    let moved = second.path("moved.safetensors");
    std::fs::copy(&lora, &moved).expect("copy");
    let at = format!("lora.init={}", moved.display());
    second.finish(&["--resume", &middle, "--set", &at]);
    expected.check(&Outcome::of(&second, STEPS), "resumed");
    tensor_edit::edit_tensors(&moved, |tensors| {
        let up = tensors.values_mut().next().expect("a tensor");
        *up = (&*up * 2.0).expect("tensor");
    });
    let said = refused(&second, &["--resume", &middle, "--set", &at]);
    assert!(said.contains("lora.init: not the file") && !said.contains("score_head_init"), "{said}");
}

#[test]
fn an_adapter_that_does_not_fit_is_refused_with_all_that_differs() {
    let first = finished(&["train.steps=1"]);
    let from = format!("lora.init={}", first.path("lora.safetensors").display());
    for (settings, parts) in [
        (vec!["lora.rank=4"], vec!["rank 8, lora.rank is 4", "and 11 others"]),
        (vec!["lora.alpha=4"], vec!["alpha 8, lora.alpha is 4"]),
        (
            vec!["lora.targets=[\"attn.to_q\",\"ff.net.2\"]", "lora.layers=[1]"],
            vec![
                "1 modules are to be trained and not in the file, such as transformer_blocks.1.ff.net.2",
                "11 modules are in",
            ],
        ),
    ] {
        let run = Run::new(&[SETTINGS, &settings[..], &[&from]].concat());
        let said = refused(&run, &[]);
        for part in parts.into_iter().chain(["lora.init: ", "lora.safetensors"]) {
            assert!(said.contains(part), "{part} in {said}");
        }
        assert!(!run.path("config.toml").exists());
    }
    let no_adapter = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let (output, said) = run_to_end(&mut Run::new(&[&format!("lora.init={}", no_adapter.display())]).train(&[]));
    assert!(output.status.code() == Some(1) && said.contains("README.md: "), "{said}");
    let no_head = finished(&["train.steps=1", "loss.score_head=false"]);
    let head = format!("loss.score_head_init={}", no_head.checkpoint(1, "").display());
    let (output, said) = run_to_end(&mut Run::new(&[SETTINGS, &[&head]].concat()).train(&[]));
    assert!(output.status.code() == Some(1) && said.contains("has no score head"), "{said}");
}

/// A checkpoint of the previous version: one expert under its former key, and none of the newer settings.
#[test]
fn an_older_checkpoint_goes_on() {
    let run = finished(&[]);
    let expected = Outcome::of(&run, STEPS);
    let (config, state) = (run.checkpoint(3, "config.toml"), run.checkpoint(3, "state.json"));
    let text = String::from_utf8(read(&config)).expect("text");
    let since = ["learnable_prompt = false", "attention = \"logits\""];
    let lines: Vec<&str> = text.lines().filter(|line| !since.contains(line)).collect();
    assert_eq!(lines.len(), text.lines().count() - since.len());
    let older = lines.join("\n").replace("expert_layers = [1]", "expert_layer = 1") + "\n";
    assert!(older.contains("expert_layer = 1"));
    std::fs::write(&config, &older).expect("write");
    let mut sums: Value = serde_json::from_slice(&read(&state)).expect("JSON");
    let digest: String = Sha256::digest(&older).iter().map(|byte| format!("{byte:02x}")).collect();
    sums["files"]["config.toml"] = serde_json::json!({"bytes": older.len(), "sha256": digest});
    std::fs::write(&state, sums.to_string()).expect("write");

    let folder = run.checkpoint(3, "").display().to_string();
    run.finish(&["--resume", &folder]);
    expected.check(&Outcome::of(&run, STEPS), "resumed");
    let said =
        refused(&run, &["--resume", &folder, "--set", "model.expert_layers=[0,1]", "--set", "loss.attention=softmax"]);
    assert!(said.contains("model.expert_layers: [1] in the checkpoint, [0, 1] now"), "{said}");
    assert!(said.contains("loss.attention: \"logits\" in the checkpoint, \"softmax\" now"), "{said}");
}
