//! FLUX.1 from end to end, as diffusers has it: text, pictures, and runs. Fixtures: tests/fixtures/flux/gen.py; a whole
//! training step is compared in tests/train_step.rs.
mod drawn;
mod folder_copy;
mod outcome;
mod smoke_run;

use candle_core::{DType, Device, Tensor};
use drawn::{difference, relative, shard, values};
use outcome::Outcome;
use seg4diff::config::TextEncoderKind::{ClipG, ClipL, T5};
use seg4diff::model::adapters::formats::{self, Format, Origin};
use seg4diff::model::families;
use seg4diff::model::text::TextEncoders;
use seg4diff::model::weights::files::ModelFiles;
use seg4diff::model::weights::{read_all, write};
use serde_json::Value;
use smoke_run::{Run, run, succeed};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

fn fixtures() -> PathBuf {
    PathBuf::from("tests/fixtures/flux")
}

fn expected() -> (Value, BTreeMap<String, Tensor>) {
    let text = std::fs::read_to_string(fixtures().join("expected.json")).expect("expected.json");
    (serde_json::from_str(&text).expect("JSON"), read_all(&fixtures().join("expected.safetensors")).expect("tensors"))
}

/// The model of a variant in a folder of its own; `schnell` has most parts of `dev`.
fn model(variant: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    folder_copy::copy(&fixtures().join("dev"), folder.path());
    folder_copy::copy(&fixtures().join(variant), folder.path());
    folder
}

fn open(folder: &Path) -> ModelFiles {
    ModelFiles::open(&folder.display().to_string()).expect("model")
}

#[test]
fn prompts_become_t5s_tokens_and_clips_pooled_state() {
    let (settings, expected) = expected();
    let tokens = settings["tokens"].as_u64().expect("tokens") as usize;
    let prompts: Vec<&str> =
        settings["prompts"].as_array().expect("prompts").iter().filter_map(Value::as_str).collect();
    let folder = model("dev");
    let load = |kinds: &[_]| TextEncoders::load(&open(folder.path()), kinds, tokens, DType::F32, &Device::Cpu);
    let encoders = load(&[ClipL, T5]).expect("encoders");
    let found = encoders.encode(&prompts).expect("text");
    assert!(relative(&found.context, &expected["context"]) < 1e-5);
    assert!(relative(&found.pooled, &expected["pooled"]) < 1e-5);
    assert_eq!((encoders.tokens(), found.zeros), (tokens, 0));

    // Without weights the words are known as well; T5's have no start token, and its end token takes a place.
    let names = ["cat", "red bus", "zebra"];
    let unloaded = TextEncoders::without_weights(&open(folder.path()), &[ClipL, T5], tokens, &Device::Cpu);
    let unloaded = unloaded.expect("tokenizers");
    let spans = unloaded.token_spans(&names).expect("spans");
    assert_eq!(spans, encoders.token_spans(&names).expect("spans"));
    // "red" is no word of the fixture's tokenizer, but "▁", "r", "e", "d".
    assert_eq!(spans, [Some(0..1), Some(1..6), Some(6..7)]);
    assert_eq!(encoders.text_places(), 0..tokens - 1);
    let long = vec!["cat"; tokens];
    let spans = encoders.token_spans(&long).expect("spans");
    assert_eq!((spans[tokens - 2].clone(), spans[tokens - 1].clone()), (Some(tokens - 2..tokens - 1), None));
    let many =
        TextEncoders::without_weights(&open(folder.path()), &[ClipL, T5], 512, &Device::Cpu).expect("tokenizers");
    assert_eq!(many.text_places(), 0..77);

    for (kinds, said) in [(vec![ClipL, ClipG], "\"clip_g\""), (vec![ClipL], "\"clip_l\", \"t5\"")] {
        let Err(problem) = load(&kinds) else { panic!("{kinds:?} are taken") };
        assert!(problem.to_string().contains(said), "{problem}");
    }
}

/// The pictures of `generate`, one after the other, of 255.
fn pictures(model: &Path, variant: &str, more: &[&str]) -> Vec<u8> {
    let (settings, _) = expected();
    let guidance = settings["guidance"].to_string();
    pictures_with(model, variant, &guidance, more)
}

/// [`pictures`] with another guidance scale.
fn pictures_with(model: &Path, variant: &str, guidance: &str, more: &[&str]) -> Vec<u8> {
    let (settings, _) = expected();
    let out = tempfile::tempdir().expect("folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["generate", "--device", "cpu", "--model"]).arg(model);
    for prompt in settings["prompts"].as_array().expect("prompts") {
        command.args(["--prompt", prompt.as_str().expect("text")]);
    }
    for (flag, value) in [("--size", &settings["size"]), ("--steps", &settings["steps"][variant])] {
        command.args([flag, &value.to_string()]);
    }
    command.args(["--guidance", guidance]);
    command.args(["--max-sequence-length", &settings["tokens"].to_string()]);
    command.arg("--latents").arg(fixtures().join("latents.safetensors")).arg("--out").arg(out.path()).args(more);
    succeed(&mut command);
    let picture = |name: &str| image::open(out.path().join(name)).expect("picture").to_rgb8().into_raw();
    [picture("000000.png"), picture("000001.png")].concat()
}

#[test]
fn pictures_are_those_of_diffusers() {
    let (_, expected) = expected();
    let wanted = |name: &str| expected[name].flatten_all().and_then(|t| t.to_vec1::<u8>()).expect("pixels");
    let (dev, schnell) = (model("dev"), model("schnell"));
    let plain = pictures(dev.path(), "dev", &[]);
    let found = difference(&plain, &wanted("dev.plain"));
    assert!(found < 0.05, "dev: {found} of 255");
    let found = difference(&pictures(schnell.path(), "schnell", &[]), &wanted("schnell.plain"));
    assert!(found < 0.05, "schnell: {found} of 255");
    let lora = fixtures().join("lora.safetensors").display().to_string();
    let adapted = pictures(dev.path(), "dev", &["--lora", &lora]);
    let found = difference(&adapted, &wanted("dev.lora"));
    assert!(found < 0.05, "dev with a LoRA: {found} of 255");
    assert!(difference(&adapted, &plain) > 1.0);
    assert!(difference(&pictures_with(dev.path(), "dev", "1.5", &[]), &plain) > 1.0, "dev is told its guidance scale");
    assert_eq!(pictures_with(schnell.path(), "schnell", "1.5", &[]), pictures(schnell.path(), "schnell", &[]));

    // The same bytes from shards.
    shard(dev.path());
    assert!(pictures(dev.path(), "dev", &[]) == plain, "shards");
}

const STEPS: u64 = 6;
const SETTINGS: &[&str] = &[
    "model.path=tests/fixtures/flux/dev",
    "model.text_encoders=[\"clip_l\", \"t5\"]",
    "model.max_sequence_length=40",
    "model.expert_layers=[1, 2]",
    "lora.targets=[\"attn.to_q\", \"attn.to_k\", \"attn.add_k_proj\", \"proj_out\", \"proj_mlp\"]",
    "train.steps=6",
    "train.batch=2",
    "checkpoint.every=2",
    "data.resolution=64",
    "data.flip=true",
];

/// Stopped and resumed, from a cache, with blocks recomputed and on one thread: the bytes of an undisturbed run.
#[test]
fn a_run_has_the_same_bytes_however_it_goes() {
    let whole = Run::new(SETTINGS);
    whole.finish(&[]);
    let whole = Outcome::of(&whole, STEPS);
    assert!(whole.metrics.iter().all(|line| line["flow"].as_f64() > Some(0.0) && line["dice"].as_f64() > Some(0.0)));

    let stopped = Run::new(SETTINGS);
    let mut child = stopped.train(&[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("train");
    while child.try_wait().expect("status").is_none() && !stopped.checkpoint(2, "state.json").exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("kill");
    child.wait().expect("status");
    stopped.finish(&["--resume"]);
    whole.check(&Outcome::of(&stopped, STEPS), "resumed");

    let recomputed = Run::new(SETTINGS);
    recomputed.finish(&["--set", "train.gradient_checkpointing=true"]);
    whole.check(&Outcome::of(&recomputed, STEPS), "recomputed");

    let one_thread = Run::new(SETTINGS);
    succeed(one_thread.train(&[]).env("RAYON_NUM_THREADS", "1"));
    whole.check(&Outcome::of(&one_thread, STEPS), "one thread");

    let folder = tempfile::tempdir().expect("folder");
    let cache = folder.path().join("cache");
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(["prepare", "cache", "--config", "configs/smoke.toml", "--out"]).arg(&cache);
    for setting in SETTINGS {
        command.args(["--set", setting]);
    }
    succeed(&mut command);
    let cached = Run::new(SETTINGS);
    let said = cached.finish(&["--set", &format!("data.cache={}", cache.display())]);
    whole.check(&Outcome::of(&cached, STEPS), &said);
}

/// A learnt prompt's tokens are T5's.
#[test]
fn a_prompt_is_learnt() {
    let settings = [SETTINGS, &["model.learnable_prompt=true", "train.steps=2", "model.expert_layers=3"]].concat();
    let run = Run::new(&settings);
    run.finish(&[]);
    let prompt = read_all(&run.path("prompt.safetensors")).expect("prompt");
    assert!(prompt.values().any(|tensor| tensor.dims().contains(&40)), "{:?}", prompt.keys());
}

/// What `--check` says before anything is loaded.
#[test]
fn settings_that_do_not_suit_are_said_at_once() {
    for (setting, said) in [
        ("model.expert_layers=4", "there is no block 4"),
        ("data.resolution=72", "72 is not a multiple of 16"),
        ("model.text_encoders=[\"clip_l\", \"clip_g\"]", "model.text_encoders: text encoder \"clip_g\""),
        ("model.text_encoders=[\"clip_l\"]", "model.text_encoders"),
    ] {
        let (output, text) = run(&mut Run::new(SETTINGS).train(&["--check", "--set", setting]));
        assert!(!output.status.success() && text.contains(said), "{setting}: {text}");
    }
}

/// Every form is read back; kohya's is of this family where the base model is known, or a layer is of it alone.
#[test]
fn adapters_have_the_names_of_other_tools() {
    let files = open(&fixtures().join("dev"));
    let release = families::of(&files).and_then(|family| family.config(&files)).expect("config").release;
    let origin = Origin { release, ..Origin::default() };
    let adapters = formats::read(&fixtures().join("lora.safetensors")).expect("adapters");
    let out = tempfile::tempdir().expect("folder");
    for origin in [&origin, &Origin::default()] {
        let file = out.path().join("kohya.safetensors");
        formats::export(&adapters, Format::Comfyui, &file, origin).expect("export");
        let tensors = read_all(&file).expect("tensors");
        for stem in ["double_blocks_0_img_attn_qkv", "double_blocks_1_txt_attn_proj", "single_blocks_0_linear1"] {
            assert!(tensors.contains_key(&format!("lora_unet_{stem}.lora_down.weight")), "{:?}", tensors.keys());
        }
        // to_v and proj_mlp of rank 2 are one layer of rank 4, with zeros where the others are.
        let up = &tensors["lora_unet_single_blocks_0_linear1.lora_up.weight"];
        assert_eq!(up.dims(), [7 * 32, 4]);
        let part = |rows: usize, start: usize, ranks: usize, first: usize| {
            let part = up.narrow(0, start, rows).and_then(|part| part.narrow(1, first, ranks)).expect("part");
            values(&part).iter().any(|value| *value != 0.0)
        };
        assert!(!part(64, 0, 4, 0) && part(32, 64, 2, 0) && !part(32, 64, 2, 2) && !part(128, 96, 2, 0));
    }
    // Of double-stream blocks alone only the base model tells.
    let double: Vec<_> = adapters.keys().filter(|name| name.starts_with("transformer_blocks.0")).cloned().collect();
    let mut adapters = adapters;
    adapters.retain(|name, _| double.contains(name));
    let stem = |origin: &Origin| {
        let file = out.path().join("double.safetensors");
        formats::export(&adapters, Format::Comfyui, &file, origin).expect("export");
        read_all(&file).expect("tensors").into_keys().next().expect("a tensor")
    };
    assert!(stem(&origin).starts_with("lora_unet_double_blocks_0_img_attn_qkv"));
    assert!(stem(&Origin::default()).starts_with("lora_unet_joint_blocks_0_x_block_attn_qkv"));

    // The names of the original checkpoint, as ComfyUI has them.
    let file = out.path().join("original.safetensors");
    let tensor = |rows: usize, columns: usize| Tensor::ones((rows, columns), DType::F32, &Device::Cpu).expect("ones");
    let layer = "diffusion_model.single_blocks.1.linear1";
    let tensors = BTreeMap::from([
        (format!("{layer}.lora_A.weight"), tensor(2, 32)),
        (format!("{layer}.lora_B.weight"), tensor(224, 2)),
    ]);
    write(&file, &tensors, &BTreeMap::new()).expect("write");
    let read = formats::read(&file).expect("adapters");
    let wanted =
        ["attn.to_k", "attn.to_q", "attn.to_v", "proj_mlp"].map(|name| format!("single_transformer_blocks.1.{name}"));
    assert_eq!(read.keys().cloned().collect::<Vec<_>>(), wanted);
    assert_eq!(read[&wanted[3]].sizes(), (32, 128));
}

/// The commands that look at attention take blocks of both kinds.
#[test]
fn attention_is_looked_at() {
    let out = tempfile::tempdir().expect("folder");
    let common =
        ["--model", "tests/fixtures/flux/dev", "--device", "cpu", "--size", "64", "--max-sequence-length", "40"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).arg("probe").args(common);
    command.args([
        "--image",
        "tests/fixtures/segmentation/images/b/street.png",
        "--prompt",
        "a photo of a cat",
        "--layer",
        "1,3",
        "--out",
    ]);
    command.arg(out.path().join("probe"));
    succeed(&mut command);
    let attention = read_all(&out.path().join("probe/attention.safetensors")).expect("attention");
    assert!(
        attention.values().any(|map| map.dims() == [40, 4, 4]),
        "{:?}",
        attention.values().map(Tensor::dims).collect::<Vec<_>>()
    );

    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).arg("analyze").args(common).args(["--blur", "1", "--steps", "8"]);
    command.arg("--sheet").arg(out.path().join("sheet.png"));
    command.args(["--images", "tests/fixtures/segmentation/images", "--labels", "tests/fixtures/segmentation/labels"]);
    command.args(["--classes", "tests/fixtures/segmentation/classes.json", "--json"]).arg(out.path().join("a.json"));
    succeed(&mut command);
    let text = std::fs::read_to_string(out.path().join("a.json")).expect("scores");
    let found: Value = serde_json::from_str(&text).expect("JSON");
    // Two double-stream blocks, then two single-stream blocks; the last has text queries, too.
    assert_eq!(found["blocks"].as_array().map(Vec::len), Some(4), "{text}");
    assert!(found["blocks"][3]["text_to_image"].as_f64().is_some_and(|share| share > 0.0), "{text}");
}

#[test]
fn a_run_is_measured() {
    drawn::check_measured(SETTINGS);
}
