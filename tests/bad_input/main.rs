//! Bad input through the real binary: one clear error that names file and place, exit status 1 or 2, no panic,
//! and nothing on the disk changed.
mod data;
#[cfg(unix)]
mod disk;
#[path = "../fake_model/mod.rs"]
mod fake_model;
mod hub;
mod model;
#[path = "../model_folder/mod.rs"]
mod model_folder;
mod segmentation;
mod world;

use std::path::Path;
use std::process::Command;
use world::{Case, World, cut, nothing, try_all};

const TRAIN: &[&str] = &["train", "--config", "c.toml"];
const CHECK: &[&str] = &["train", "--config", "c.toml", "--check"];
const RESUME: &[&str] = &["train", "--config", "c.toml", "--resume"];
const RESUME_1: &[&str] = &["train", "--config", "c.toml", "--resume", "run/checkpoints/step-000001"];

const COMMAND_LINE: &[Case] = &[
    ("no command", nothing, &[], 2, &["Usage"]),
    ("unknown command", nothing, &["trian"], 2, &["trian", "'train'"]),
    ("unknown flag", nothing, &["train", "--confg", "c.toml"], 2, &["--confg", "'--config'"]),
    ("no config given", nothing, &["train"], 2, &["--config <F>"]),
    ("flag without its value", nothing, &["train", "--config"], 2, &["--config <F>", "value is required"]),
    ("stray argument", nothing, &["train", "--config", "c.toml", "extra"], 2, &["extra"]),
    ("force without resume", nothing, &["train", "--config", "c.toml", "--force"], 2, &["--resume"]),
    (
        "set without a value",
        nothing,
        &["train", "--config", "c.toml", "--set", "seed"],
        2,
        &["--set seed:", "KEY=VALUE"],
    ),
    (
        "set of an unknown key",
        nothing,
        &["train", "--config", "c.toml", "--set", "lora.rnk=3"],
        2,
        &["--set lora.rnk=3:", "lora.rank"],
    ),
    (
        "set of a wrong type",
        nothing,
        &["train", "--config", "c.toml", "--set", "train.steps=many"],
        2,
        &["--set train.steps=many:", "whole number"],
    ),
    (
        "set that is not TOML",
        nothing,
        &["train", "--config", "c.toml", "--set", "lora.layers=[1,"],
        2,
        &["--set lora.layers=[1,:", "TOML syntax"],
    ),
    (
        "set out of range",
        nothing,
        &["train", "--config", "c.toml", "--set", "data.flip=2"],
        2,
        &["--set data.flip=2:", "true or false"],
    ),
];

const CONFIG: &[Case] = &[
    ("config that is not there", nothing, &["train", "--config", "gone.toml"], 2, &["gone.toml", "No such file"]),
    ("config that is a folder", nothing, &["train", "--config", "model"], 2, &["model", "directory"]),
    (
        "config that is not text",
        |w| w.write("c.toml", b"seed = 1\n# \xff\xfe\n"),
        TRAIN,
        2,
        &["c.toml", "line 2", "UTF-8"],
    ),
    ("empty config", |w| w.write("c.toml", ""), TRAIN, 2, &["c.toml", "model.path is missing"]),
    ("TOML syntax", |w| w.add("[train\nsteps = 1\n"), TRAIN, 2, &["c.toml:7:7", "TOML syntax"]),
    ("key twice", |w| w.add("flip = true\nflip = true\n"), TRAIN, 2, &["c.toml:8:1", "duplicate key"]),
    ("unknown key", |w| w.add("worker = 3\n"), TRAIN, 2, &["c.toml:7:1", "data.worker", "data.workers"]),
    ("unknown section", |w| w.add("[optimizer]\nlr = 1\n"), TRAIN, 2, &["c.toml:7:2", "[optimizer]", "[optim]"]),
    ("key in the wrong section", |w| w.add("[train]\nlr = 1\n"), TRAIN, 2, &["c.toml:8:1", "train.lr", "optim.lr"]),
    (
        "wrong type",
        |w| w.add("[train]\nsteps = \"10\"\n"),
        TRAIN,
        2,
        &["c.toml:8:1", "train.steps", "whole number", "\"10\""],
    ),
    ("fraction for a count", |w| w.add("[lora]\nrank = 1.5\n"), TRAIN, 2, &["c.toml:8:1", "lora.rank", "1.5"]),
    ("negative count", |w| w.add("workers = -1\n"), TRAIN, 2, &["c.toml:7:1", "data.workers", "-1"]),
    ("out of range", |w| w.add("[train]\nbatch = 0\n"), TRAIN, 2, &["c.toml:8:1", "train.batch", "is 0"]),
    ("share above one", |w| w.add("caption_dropout = 2\n"), TRAIN, 2, &["c.toml:7:1", "data.caption_dropout", "2.0"]),
    ("not a number", |w| w.add("[optim]\nlr = nan\n"), TRAIN, 2, &["c.toml:8:1", "optim.lr", "finite"]),
    (
        "number too large",
        |w| w.add("max_masks = 99999999999999999999\n"),
        TRAIN,
        2,
        &["c.toml:7:1", "data.max_masks", "too large"],
    ),
    (
        "unknown choice",
        |w| w.add("[loss]\nalignment = \"sofmax\"\n"),
        TRAIN,
        2,
        &["c.toml:8:1", "loss.alignment", "\"softmax\""],
    ),
    (
        "unknown LoRA target",
        |w| w.add("[lora]\ntargets = [\"to_q\"]\n"),
        TRAIN,
        2,
        &["c.toml:8:1", "lora.targets", "\"attn.to_q\""],
    ),
    ("list with a wrong item", |w| w.add("[lora]\nlayers = [1, -2]\n"), TRAIN, 2, &["c.toml:8:1", "lora.layers"]),
    (
        "hub name",
        nothing,
        &["train", "--config", "c.toml", "--set", "model.path=hf:x"],
        2,
        &["model.path", "hf:ORG/NAME"],
    ),
    (
        "coco without labels",
        |w| w.add("format = \"coco\"\nclasses = \"c.json\"\n"),
        TRAIN,
        2,
        &["c.toml:7:1", "data.labels"],
    ),
    (
        "nothing to train",
        |w| w.add("[loss]\nflow_weight = 0\nfocal_weight = 0\ndice_weight = 0\n"),
        TRAIN,
        2,
        &["c.toml:8:1", "weight 0"],
    ),
    ("logging filter", nothing, &["env:RUST_LOG=a=b=c", "train", "--config", "c.toml"], 2, &["RUST_LOG"]),
];

const FILES: &[Case] = &[
    (
        "no model",
        nothing,
        &["train", "--config", "c.toml", "--set", "model.path=gone"],
        2,
        &["gone/model_index.json is missing", "gone/transformer/config.json is missing"],
    ),
    (
        "model that is a file",
        nothing,
        &["train", "--config", "c.toml", "--set", "model.path=a_0.tar"],
        2,
        &["model.path: a_0.tar: not a folder", "diffusers"],
    ),
    (
        "model without a part",
        |w| std::fs::remove_file(w.path("model/vae/config.json")).expect("remove"),
        CHECK,
        2,
        &["model/vae/config.json is missing"],
    ),
    (
        "text encoder that the model lacks",
        nothing,
        &["train", "--config", "c.toml", "--set", "model.text_encoders=[\"clip_l\",\"t5\"]"],
        2,
        &["model/text_encoder_3/config.json is missing"],
    ),
    (
        "missing shard",
        |w| std::fs::remove_file(w.path("model/text_encoder_2/model-1.safetensors")).expect("remove"),
        CHECK,
        2,
        &["model-1.safetensors is missing"],
    ),
    (
        "broken index of shards",
        |w| w.write("model/text_encoder_2/model.safetensors.index.json", "{"),
        CHECK,
        2,
        &["model.safetensors.index.json", "not an index"],
    ),
    (
        "broken model config",
        |w| w.write("model/transformer/config.json", "[1"),
        CHECK,
        2,
        &["model/transformer/config.json", "not JSON", "line 1"],
    ),
    (
        "no such block",
        nothing,
        &["train", "--config", "c.toml", "--set", "model.expert_layer=9"],
        2,
        &["model.expert_layer", "block 9", "model/transformer/config.json"],
    ),
    (
        "resolution of half a token",
        nothing,
        &["train", "--config", "c.toml", "--set", "data.resolution=72"],
        2,
        &["data.resolution", "72", "16"],
    ),
    (
        "pattern that matches nothing",
        nothing,
        &["train", "--config", "c.toml", "--set", "data.source=[\"b_*.tar\"]"],
        2,
        &["data.source", "b_*.tar matches nothing"],
    ),
    (
        "pattern that is none",
        nothing,
        &["train", "--config", "c.toml", "--set", "data.source=[\"b_***\"]"],
        2,
        &["data.source", "b_***", "not a pattern"],
    ),
    (
        "no captions",
        nothing,
        &["train", "--config", "c.toml", "--set", "data.captions=gone.json"],
        2,
        &["data.captions", "gone.json", "missing"],
    ),
    (
        "captions that are a folder",
        nothing,
        &["train", "--config", "c.toml", "--set", "data.captions=model"],
        2,
        &["data.captions", "model is not a file"],
    ),
    (
        "output that is a file",
        nothing,
        &["train", "--config", "c.toml", "--set", "output=a_0.tar/x"],
        2,
        &["output", "a_0.tar is a file"],
    ),
    (
        "output that holds a run",
        |w| w.write("run/metrics.jsonl", "{\"step\":1}\n"),
        TRAIN,
        2,
        &["run", "metrics.jsonl", "--resume"],
    ),
];

const CHECKPOINTS: &[Case] = &[
    ("resume from nowhere", nothing, RESUME_1, 1, &["run/checkpoints/step-000001", "not a checkpoint"]),
    (
        "resume from another folder",
        nothing,
        &["train", "--config", "c.toml", "--resume", "model"],
        1,
        &["model", "state.json"],
    ),
    (
        "checkpoint cut short",
        |w| {
            w.checkpoint(1, "m");
            cut(w, "run/checkpoints/step-000001/adapter.safetensors")
        },
        RESUME_1,
        1,
        &["step-000001/adapter.safetensors", "damaged", "bytes"],
    ),
    (
        "checkpoint with other bytes",
        |w| {
            w.checkpoint(1, "m");
            let file = "run/checkpoints/step-000001/optimizer.safetensors";
            let mut content = std::fs::read(w.path(file)).expect("read");
            *content.last_mut().expect("a byte") ^= 1;
            w.write(file, content)
        },
        RESUME_1,
        1,
        &["step-000001/optimizer.safetensors", "SHA-256"],
    ),
    (
        "state that is not JSON",
        |w| {
            w.checkpoint(1, "m");
            cut(w, "run/checkpoints/step-000001/state.json")
        },
        RESUME_1,
        1,
        &["step-000001/state.json", "damaged", "line"],
    ),
    (
        "checkpoint of a later version",
        |w| {
            w.checkpoint(1, "m");
            w.write("run/checkpoints/step-000001/state.json", "{\"format\": 9}")
        },
        RESUME_1,
        1,
        &["state.json", "format 9", "expected 1"],
    ),
    (
        "no checkpoint is whole",
        |w| {
            w.checkpoint(1, "m");
            cut(w, "run/checkpoints/step-000001/config.toml")
        },
        RESUME,
        1,
        &["run/checkpoints", "no checkpoint is whole", "config.toml"],
    ),
    (
        "checkpoint of another config",
        |w| {
            w.checkpoint(1, "m");
            w.add("[optim]\nlr = 1e-3\n")
        },
        RESUME,
        2,
        &["step-000001", "optim.lr: 0.0001 in the checkpoint, 0.001 now", "--force"],
    ),
    ("checkpoint of another model", |w| w.checkpoint(1, "m"), RESUME, 2, &["step-000001", "model.path", "not the one"]),
];

#[test]
fn command_line() {
    try_all(World::small, COMMAND_LINE);
}

#[test]
fn config_file() {
    try_all(World::small, CONFIG);
}

#[test]
fn files_that_the_config_names() {
    try_all(World::small, FILES);
}

#[test]
fn checkpoints() {
    try_all(World::small, CHECKPOINTS);
}

#[test]
fn a_cuda_device_without_cuda() {
    if !candle_core::utils::cuda_is_available() {
        let args: &[&str] = &["train", "--config", "c.toml", "--set", "device=cuda:0"];
        try_all(World::small, &[("cuda", nothing, args, 2, &["cuda:0", "--features cuda"])]);
    }
}

/// `configs/sa1b.toml` is for the real model: it parses, and the check names the files missing here.
#[test]
fn check_of_a_real_config_says_what_is_missing() {
    let world = World::small();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/sa1b.toml");
    let output = Command::new(env!("CARGO_BIN_EXE_train"))
        .args(["--check", "--config"])
        .arg(config)
        .current_dir(world.path(""))
        .output()
        .expect("train");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    for file in [
        "models/stable-diffusion-3-medium-diffusers/transformer/diffusion_pytorch_model.safetensors is missing",
        "models/stable-diffusion-3-medium-diffusers/text_encoder_2/model.safetensors is missing",
        "data/sa1b/sa_*.tar matches nothing",
        "data/sa1b/captions.json: is missing",
    ] {
        assert!(stderr.contains(file), "{file} in {stderr}");
    }
}

/// The config that the cases above spoil works.
#[test]
fn a_good_config_passes_the_check() {
    let world = World::whole();
    let output = Command::new(env!("CARGO_BIN_EXE_seg4diff")).args(CHECK).current_dir(world.path("")).output();
    let output = output.expect("seg4diff");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let next = "seg4diff inspect --config c.toml draws the first samples as training will see them";
    // The inventory of the data stands above.
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.ends_with(&format!("\nc.toml: ok\n{next}\n")), "{said}");
    assert!(output.status.success() && !world.path("run").exists());
}
