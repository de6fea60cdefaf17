//! FLUX.1 from end to end, as diffusers has it: text, pictures, and runs. Fixtures: tests/fixtures/flux/gen.py; a whole
//! training step is compared in tests/train_step.rs.
mod drawn;
mod folder_copy;
mod outcome;
mod smoke_run;

use candle_core::{DType, Device, Tensor};
use drawn::{Fixtures, difference, open, origin_of, relative, shard, values};
use seg4diff::config::TextEncoderKind::{ClipG, ClipL, T5};
use seg4diff::model::adapters::formats::{self, Format, Origin};
use seg4diff::model::text::TextEncoders;
use seg4diff::model::weights::{read_all, write};
use serde_json::Value;
use smoke_run::Run;
use std::collections::BTreeMap;
use std::path::Path;

const FIXTURES: Fixtures = Fixtures("tests/fixtures/flux");

/// The model of a variant in a folder of its own; `schnell` has most parts of `dev`.
fn model(variant: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    folder_copy::copy(&FIXTURES.path("dev"), folder.path());
    folder_copy::copy(&FIXTURES.path(variant), folder.path());
    folder
}

#[test]
fn prompts_become_t5s_tokens_and_clips_pooled_state() {
    let (settings, expected) = (FIXTURES.settings(), FIXTURES.tensors());
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

/// The pictures of a variant with the fixture's guidance scale, unless another is given.
fn pictures(model: &Path, variant: &str, more: &[&str]) -> Vec<u8> {
    let settings = FIXTURES.settings();
    let guidance = settings["guidance"].to_string();
    let guidance = if more.contains(&"--guidance") { vec![] } else { vec!["--guidance", &guidance] };
    FIXTURES.pictures(model, &settings["steps"][variant], &[guidance, more.to_vec()].concat())
}

#[test]
fn pictures_are_those_of_diffusers() {
    let (dev, schnell) = (model("dev"), model("schnell"));
    let (plain, of_schnell) = (pictures(dev.path(), "dev", &[]), pictures(schnell.path(), "schnell", &[]));
    let lora = FIXTURES.path("lora.safetensors").display().to_string();
    let adapted = pictures(dev.path(), "dev", &["--lora", &lora]);
    for (found, name) in [(&plain, "dev.plain"), (&of_schnell, "schnell.plain"), (&adapted, "dev.lora")] {
        let off = FIXTURES.off(found, name);
        assert!(off < 0.05, "{name}: {off} of 255");
    }
    assert!(difference(&adapted, &plain) > 1.0);
    let other_scale = ["--guidance", "1.5"];
    assert!(difference(&pictures(dev.path(), "dev", &other_scale), &plain) > 1.0, "dev is told its guidance scale");
    assert_eq!(pictures(schnell.path(), "schnell", &other_scale), of_schnell);

    // The same bytes from shards.
    shard(dev.path());
    assert!(pictures(dev.path(), "dev", &[]) == plain, "shards");
}

const SETTINGS: &[&str] = &[
    "model.path=tests/fixtures/flux/dev",
    "model.text_encoders=[\"clip_l\", \"t5\"]",
    "model.max_sequence_length=40",
    "model.expert_layers=[1, 2]",
    "lora.targets=[\"attn.to_q\", \"attn.to_k\", \"attn.add_k_proj\", \"proj_out\", \"proj_mlp\"]",
    "data.resolution=64",
    "data.flip=true",
];

#[test]
fn a_run_has_the_same_bytes_however_it_goes() {
    drawn::check_bytes(SETTINGS);
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
    let refused = [
        ("model.expert_layers=4", "there is no block 4"),
        ("data.resolution=72", "72 is not a multiple of 16"),
        ("model.text_encoders=[\"clip_l\", \"clip_g\"]", "model.text_encoders: text encoder \"clip_g\""),
        ("model.text_encoders=[\"clip_l\"]", "model.text_encoders"),
    ];
    drawn::check_refused(SETTINGS, &refused);
}

/// Every form is read back; kohya's is of this family where the base model is known, or a layer is of it alone.
#[test]
fn adapters_have_the_names_of_other_tools() {
    let origin = origin_of(&FIXTURES.path("dev"));
    let adapters = formats::read(&FIXTURES.path("lora.safetensors")).expect("adapters");
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

/// The commands that look at attention take blocks of both kinds: two double-stream blocks, then two single-stream blocks.
#[test]
fn attention_is_looked_at() {
    let common =
        ["--model", "tests/fixtures/flux/dev", "--device", "cpu", "--size", "64", "--max-sequence-length", "40"];
    drawn::check_attention(&common, "1,3", 40, 4);
}

#[test]
fn a_run_is_measured() {
    drawn::check_measured(SETTINGS);
}
