//! Broken base models, adapters, pictures and other input of `generate`, `probe` and `export`.
use super::world::{Case, World, cut, nothing, try_all};
use candle_core::{DType, Device, Tensor};
use seg4diff::model::weights::write;
use std::collections::BTreeMap;
use std::path::Path;

const GENERATE: &[&str] =
    &["generate", "--model", "model", "--prompt", "a", "--out", "out", "--size", "64", "--steps", "1"];
const WITH_LORA: &[&str] = &[
    "generate",
    "--model",
    "model",
    "--lora",
    "l.safetensors",
    "--prompt",
    "a",
    "--out",
    "out",
    "--size",
    "64",
    "--steps",
    "1",
];
const WITH_LATENTS: &[&str] = &[
    "generate",
    "--model",
    "model",
    "--latents",
    "n.safetensors",
    "--prompt",
    "a",
    "--out",
    "out",
    "--size",
    "64",
    "--steps",
    "1",
];
const PROBE: &[&str] =
    &["probe", "--model", "model", "--image", "i.jpg", "--prompt", "a", "--layer", "1", "--out", "out", "--size", "64"];
const TRAIN: &[&str] = &["train", "--config", "c.toml"];

const MMDIT: &str = "model/transformer/diffusion_pytorch_model.safetensors";
const TO_Q: &str = "transformer_blocks.1.attn.to_q.weight";

fn tensor(shape: &[usize]) -> Tensor {
    Tensor::ones(shape, DType::F32, &Device::Cpu).expect("tensor")
}

/// A safetensors file of ones.
fn ones(world: &World, file: &str, tensors: &[(&str, &[usize])]) {
    let tensors = tensors.iter().map(|(name, shape)| (name.to_string(), tensor(shape))).collect();
    write(&world.path(file), &tensors, &BTreeMap::new()).expect("write");
}

/// An adapter of one module in diffusers' format.
fn lora(world: &World, module: &str, a: &[usize], b: &[usize]) {
    let (a_name, b_name) =
        (format!("transformer.{module}.lora_A.weight"), format!("transformer.{module}.lora_B.weight"));
    ones(world, "l.safetensors", &[(&a_name, a), (&b_name, b)]);
}

/// A photograph of the smoke data.
fn photograph() -> Vec<u8> {
    let shard = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/smoke/sa_000000.tar");
    let mut archive = tar::Archive::new(std::fs::File::open(shard).expect("shard"));
    let mut entries = archive.entries().expect("entries").map(|entry| entry.expect("entry"));
    let mut entry = entries.find(|entry| entry.path().is_ok_and(|path| path.ends_with("sa_1.jpg"))).expect("sa_1.jpg");
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut entry, &mut bytes).expect("read");
    bytes
}

const MODEL: &[Case] = &[
    (
        "missing tensor",
        |w| w.edit_tensors(MMDIT, |t| drop(t.remove(TO_Q))),
        GENERATE,
        1,
        &[MMDIT, TO_Q, "missing", "[32, 32]"],
    ),
    (
        "missing tensor, in training",
        |w| w.edit_tensors(MMDIT, |t| drop(t.remove(TO_Q))),
        TRAIN,
        1,
        &[MMDIT, TO_Q, "missing", "[32, 32]"],
    ),
    (
        "extra tensor",
        |w| w.edit_tensors(MMDIT, |t| drop(t.insert("transformer_blocks.3.x".into(), tensor(&[5])))),
        GENERATE,
        1,
        &[MMDIT, "transformer_blocks.3.x", "[5]", "not part of the model"],
    ),
    (
        "misshapen tensor",
        |w| w.edit_tensors(MMDIT, |t| drop(t.insert(TO_Q.into(), tensor(&[32, 48])))),
        GENERATE,
        1,
        &[MMDIT, TO_Q, "[32, 48]", "[32, 32]"],
    ),
    (
        "misshapen position table",
        |w| w.edit_tensors(MMDIT, |t| drop(t.insert("pos_embed.pos_embed".into(), tensor(&[1, 100, 32])))),
        GENERATE,
        1,
        &[MMDIT, "pos_embed.pos_embed", "[1, 100, 32]", "[1, 256, 32]"],
    ),
    ("weights cut short", |w| cut(w, MMDIT), GENERATE, 1, &[MMDIT, "cut short"]),
    ("weights that are empty", |w| w.write(MMDIT, ""), GENERATE, 1, &[MMDIT, "not a safetensors file"]),
    (
        "weights that are a web page",
        |w| w.write(MMDIT, "<!doctype html><html>404</html>"),
        GENERATE,
        1,
        &[MMDIT, "not a safetensors file"],
    ),
    (
        "weights with a broken header",
        |w| w.write(MMDIT, b"\x05\0\0\0\0\0\0\0{\"a\":"),
        GENERATE,
        1,
        &[MMDIT, "not a safetensors header"],
    ),
    (
        "config without a key",
        |w| w.replace("model/transformer/config.json", "\"num_attention_heads\"", "\"heads\""),
        GENERATE,
        1,
        &["model/transformer/config.json", "num_attention_heads"],
    ),
    (
        "config with a wrong type",
        |w| w.replace("model/transformer/config.json", "\"num_layers\": 3", "\"num_layers\": \"three\""),
        GENERATE,
        1,
        &["model/transformer/config.json", "three", "line"],
    ),
    (
        "no heads",
        |w| w.replace("model/transformer/config.json", "\"num_attention_heads\": 2", "\"num_attention_heads\": 0"),
        GENERATE,
        1,
        &["model/transformer/config.json", "num_attention_heads is 0"],
    ),
    (
        "heads beyond all reason",
        |w| {
            w.replace(
                "model/transformer/config.json",
                "\"num_attention_heads\": 2",
                "\"num_attention_heads\": 9223372036854775807",
            )
        },
        GENERATE,
        1,
        &["model/transformer/config.json", "num_attention_heads is 9223372036854775807"],
    ),
    (
        "layers beyond all reason",
        |w| w.replace("model/transformer/config.json", "\"num_layers\": 3", "\"num_layers\": 4000000000"),
        GENERATE,
        1,
        &["model/transformer/config.json", "num_layers is 4000000000"],
    ),
    (
        "a layer too many",
        |w| w.replace("model/transformer/config.json", "\"num_layers\": 3", "\"num_layers\": 4"),
        GENERATE,
        1,
        &[MMDIT, "transformer_blocks.2.attn.to_add_out.weight", "missing", "[32, 32]"],
    ),
    (
        "positions beyond all reason",
        |w| {
            w.replace(
                "model/transformer/config.json",
                "\"pos_embed_max_size\": 16",
                "\"pos_embed_max_size\": 9223372036854775807",
            )
        },
        GENERATE,
        1,
        &["model/transformer/config.json", "pos_embed_max_size is 9223372036854775807"],
    ),
    (
        "patches of another size",
        |w| w.replace("model/transformer/config.json", "\"patch_size\": 2", "\"patch_size\": 4"),
        GENERATE,
        1,
        &[MMDIT, "pos_embed.proj.weight", "[32, 16, 2, 2]", "[32, 16, 4, 4]"],
    ),
    (
        "width that is not that of the heads",
        |w| w.replace("model/transformer/config.json", "\"attention_head_dim\": 16", "\"attention_head_dim\": 12"),
        GENERATE,
        1,
        &["model/transformer/config.json", "caption_projection_dim is 32", "24"],
    ),
    (
        "norm of another kind",
        |w| w.replace("model/transformer/config.json", "\"qk_norm\": null", "\"qk_norm\": \"layer_norm\""),
        GENERATE,
        1,
        &["model/transformer/config.json", "qk_norm", "layer_norm"],
    ),
    (
        "other channels than the autoencoder",
        |w| w.replace("model/vae/config.json", "\"latent_channels\": 16", "\"latent_channels\": 4"),
        GENERATE,
        1,
        &["model/vae/diffusion_pytorch_model.safetensors", "[32, 16, 3, 3]", "[8, 16, 3, 3]"],
    ),
    (
        "autoencoder without levels",
        |w| w.replace("model/vae/config.json", "\"norm_num_groups\": 4", "\"norm_num_groups\": 0"),
        GENERATE,
        1,
        &["model/vae/config.json", "norm_num_groups is 0"],
    ),
    (
        "pipeline of another kind",
        |w| w.replace("model/model_index.json", "StableDiffusion3Pipeline", "PixArtAlphaPipeline"),
        TRAIN,
        1,
        &["model/model_index.json", "PixArtAlphaPipeline", "StableDiffusion3"],
    ),
    (
        "no tokenizer",
        |w| std::fs::remove_dir_all(w.path("model/tokenizer_2")).expect("remove"),
        GENERATE,
        1,
        &["model/tokenizer_2"],
    ),
    (
        "no tokenizer, in training",
        |w| std::fs::remove_dir_all(w.path("model/tokenizer")).expect("remove"),
        TRAIN,
        2,
        &["model/tokenizer/vocab.json is missing"],
    ),
    (
        "broken vocabulary",
        |w| cut(w, "model/tokenizer/vocab.json"),
        GENERATE,
        1,
        &["model/tokenizer/vocab.json", "line"],
    ),
    (
        "vocabulary of another kind",
        |w| w.write("model/tokenizer/vocab.json", "[\"a\", \"b\"]"),
        GENERATE,
        1,
        &["model/tokenizer/vocab.json", "map"],
    ),
    (
        "vocabulary without the special tokens",
        |w| w.replace("model/tokenizer/vocab.json", "<|endoftext|>", "<|end|>"),
        GENERATE,
        1,
        &["model/text_encoder/config.json", "vocab_size is 616", "token 616"],
    ),
    (
        "vocabulary larger than the text encoder's",
        |w| {
            let text = std::fs::read_to_string(w.path("model/tokenizer/vocab.json")).expect("read");
            let vocabulary: BTreeMap<String, u32> = serde_json::from_str(&text).expect("JSON");
            let shifted: BTreeMap<String, u32> = vocabulary.into_iter().map(|(word, id)| (word, id + 500)).collect();
            w.write("model/tokenizer/vocab.json", serde_json::to_string(&shifted).expect("JSON"));
        },
        GENERATE,
        1,
        &["model/text_encoder/config.json", "vocab_size is 616", "token 1114"],
    ),
    (
        "broken merges",
        |w| w.write("model/tokenizer/merges.txt", "#version: 0.2\na b c\n"),
        GENERATE,
        1,
        &["model/tokenizer/merges.txt", "line 2"],
    ),
    (
        "scheduler with dynamic shifting",
        |w| {
            let (from, to) = ("\"use_dynamic_shifting\": false", "\"use_dynamic_shifting\": true");
            w.replace("model/scheduler/scheduler_config.json", from, to)
        },
        GENERATE,
        1,
        &["model/scheduler/scheduler_config.json", "use_dynamic_shifting"],
    ),
    (
        "scheduler of another kind, in training",
        |w| {
            let from = "FlowMatchEulerDiscreteScheduler";
            w.replace("model/scheduler/scheduler_config.json", from, "DDIMScheduler")
        },
        TRAIN,
        1,
        &["model/scheduler/scheduler_config.json", "DDIMScheduler"],
    ),
    (
        "index of a shard that is not there",
        |w| {
            w.remove(MMDIT);
            let index = "{\"weight_map\": {\"pos_embed.pos_embed\": \"gone-1.safetensors\"}}";
            w.write(&format!("{MMDIT}.index.json"), index)
        },
        GENERATE,
        1,
        &["model/transformer/gone-1.safetensors"],
    ),
    (
        "index that puts a tensor into another shard",
        |w| {
            std::fs::rename(w.path(MMDIT), w.path("model/transformer/s-1.safetensors")).expect("rename");
            let index = "{\"weight_map\": {\"pos_embed.pos_embed\": \"s-1.safetensors\", \"x\": \"s-1.safetensors\"}}";
            w.write(&format!("{MMDIT}.index.json"), index)
        },
        GENERATE,
        1,
        &["model/transformer/diffusion_pytorch_model.safetensors.index.json", "tensor x", "s-1.safetensors"],
    ),
    (
        "no model",
        nothing,
        &["generate", "--model", "gone", "--prompt", "a", "--out", "out"],
        1,
        &["gone", "no such folder"],
    ),
    (
        "model that is a file",
        nothing,
        &["generate", "--model", "c.toml", "--prompt", "a", "--out", "out"],
        1,
        &["c.toml", "not a folder"],
    ),
];

const ADAPTERS: &[Case] = &[
    ("no adapter", nothing, WITH_LORA, 1, &["l.safetensors", "No such file"]),
    (
        "adapter of a larger model",
        |w| lora(w, "transformer_blocks.7.attn.to_q", &[4, 32], &[32, 4]),
        WITH_LORA,
        1,
        &["l.safetensors", "transformer_blocks.7.attn.to_q", "3 blocks"],
    ),
    (
        "adapter of a wider model",
        |w| lora(w, "transformer_blocks.0.attn.to_q", &[4, 48], &[48, 4]),
        WITH_LORA,
        1,
        &["l.safetensors", "transformer_blocks.0.attn.to_q", "[4, 48]", "[4, 32]"],
    ),
    (
        "adapter of two ranks in one",
        |w| lora(w, "transformer_blocks.0.attn.to_q", &[4, 32], &[32, 3]),
        WITH_LORA,
        1,
        &["l.safetensors", "transformer_blocks.0.attn.to_q", "[4, 32]", "[32, 3]"],
    ),
    (
        "adapter with one side",
        |w| ones(w, "l.safetensors", &[("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", &[4, 32])]),
        WITH_LORA,
        1,
        &["l.safetensors", "transformer_blocks.0.attn.to_q", "up (B)"],
    ),
    (
        "adapter of a text encoder",
        |w| ones(w, "l.safetensors", &[("text_encoder.text_model.a.lora_A.weight", &[4, 32])]),
        WITH_LORA,
        1,
        &["l.safetensors", "text encoder"],
    ),
    (
        "weights that are no adapter",
        |w| w.write("l.safetensors", std::fs::read(w.path(MMDIT)).expect("read")),
        WITH_LORA,
        1,
        &["l.safetensors", "not a key of an SD3 or FLUX.1 or FLUX.2-klein adapter"],
    ),
    (
        "adapter cut short",
        |w| {
            lora(w, "transformer_blocks.0.attn.to_q", &[4, 32], &[32, 4]);
            cut(w, "l.safetensors")
        },
        WITH_LORA,
        1,
        &["l.safetensors", "cut short"],
    ),
    ("adapter without tensors", |w| ones(w, "l.safetensors", &[]), WITH_LORA, 1, &["l.safetensors", "no tensors"]),
    (
        "export of nothing",
        nothing,
        &["export", "--checkpoint", "run/checkpoints/step-000001", "--format", "peft", "--out", "o"],
        1,
        &["run/checkpoints/step-000001"],
    ),
    (
        "export of a damaged checkpoint",
        |w| {
            w.checkpoint(1, "m");
            cut(w, "run/checkpoints/step-000001/adapter.safetensors")
        },
        &["export", "--checkpoint", "run/checkpoints/step-000001", "--format", "peft", "--out", "o"],
        1,
        &["step-000001/adapter.safetensors", "damaged"],
    ),
    (
        "export of a checkpoint without adapter",
        |w| w.checkpoint(1, "m"),
        &["export", "--checkpoint", "run/checkpoints/step-000001", "--format", "diffusers", "--out", "o.safetensors"],
        1,
        &["no modules"],
    ),
    (
        "export in an unknown format",
        nothing,
        &["export", "--checkpoint", "c", "--format", "kohya", "--out", "o"],
        2,
        &["kohya", "comfyui"],
    ),
];

const COMMANDS: &[Case] = &[
    (
        "probe of a block that is not there",
        |w| w.write("i.jpg", photograph()),
        &[
            "probe", "--model", "model", "--image", "i.jpg", "--prompt", "a", "--layer", "3", "--out", "out", "--size",
            "64",
        ],
        2,
        &["--layer 3", "3 blocks"],
    ),
    ("no picture", nothing, PROBE, 1, &["i.jpg", "No such file"]),
    ("picture that is none", |w| w.write("i.jpg", "not a picture"), PROBE, 1, &["i.jpg"]),
    ("picture that is empty", |w| w.write("i.jpg", ""), PROBE, 1, &["i.jpg"]),
    ("picture that is a folder", |w| w.write("i.jpg/x", ""), PROBE, 1, &["i.jpg"]),
    (
        "JPEG cut short",
        |w| {
            w.write("i.jpg", photograph());
            cut(w, "i.jpg")
        },
        PROBE,
        1,
        &["i.jpg"],
    ),
    (
        "PNG cut short",
        |w| {
            let image = image::RgbImage::from_fn(90, 70, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]));
            image.save(w.path("i.png")).expect("save");
            cut(w, "i.png");
            std::fs::rename(w.path("i.png"), w.path("i.jpg")).expect("rename")
        },
        PROBE,
        1,
        &["i.jpg"],
    ),
    (
        "size that is no number of tokens",
        nothing,
        &["generate", "--model", "model", "--prompt", "a", "--out", "out", "--size", "72"],
        2,
        &["--size", "72", "multiple of 16"],
    ),
    (
        "size beyond the model's positions",
        nothing,
        &["generate", "--model", "model", "--prompt", "a", "--out", "out", "--size", "512"],
        2,
        &["512 pixels", "at most 256"],
    ),
    (
        "no steps",
        nothing,
        &["generate", "--model", "m", "--prompt", "a", "--out", "o", "--steps", "0"],
        2,
        &["--steps"],
    ),
    ("no prompt", nothing, &["generate", "--model", "m", "--out", "o"], 2, &["--prompt"]),
    (
        "guidance that is no number",
        nothing,
        &["generate", "--model", "m", "--prompt", "a", "--out", "o", "--guidance", "nan"],
        2,
        &["--guidance"],
    ),
    (
        "noise share above one",
        nothing,
        &["probe", "--model", "m", "--image", "i", "--prompt", "a", "--layer", "1", "--out", "o", "--sigma", "1.5"],
        2,
        &["--sigma", "0 to 1"],
    ),
    (
        "unknown text encoder",
        nothing,
        &["generate", "--model", "model", "--prompt", "a", "--out", "out", "--text-encoders", "clip_h"],
        2,
        &["clip_h", "clip_l"],
    ),
    (
        "text encoder that the model lacks",
        nothing,
        &[
            "generate",
            "--model",
            "model",
            "--prompt",
            "a",
            "--out",
            "out",
            "--size",
            "64",
            "--text-encoders",
            "clip_l,t5",
        ],
        1,
        &["model/tokenizer_3"],
    ),
    (
        "latents under another name",
        |w| ones(w, "n.safetensors", &[("noise", &[1, 16, 8, 8])]),
        WITH_LATENTS,
        1,
        &["n.safetensors", "latents", "noise"],
    ),
    (
        "latents of another size",
        |w| ones(w, "n.safetensors", &[("latents", &[1, 16, 16, 16])]),
        WITH_LATENTS,
        1,
        &["n.safetensors", "[1, 16, 16, 16]", "[1, 16, 8, 8]"],
    ),
    (
        "latents of other images",
        |w| ones(w, "n.safetensors", &[("latents", &[3, 16, 8, 8])]),
        WITH_LATENTS,
        1,
        &["n.safetensors", "[3, 16, 8, 8]", "[1, 16, 8, 8]"],
    ),
    (
        "latents that are not finite",
        |w| {
            ones(w, "n.safetensors", &[("latents", &[1, 16, 8, 8])]);
            w.edit_tensors("n.safetensors", |t| {
                let spoilt = (&t["latents"] / 0.0).expect("tensor");
                t.insert("latents".into(), spoilt);
            })
        },
        WITH_LATENTS,
        1,
        &["n.safetensors", "latents", "not finite"],
    ),
    ("latents that are none", |w| w.write("n.safetensors", "latents"), WITH_LATENTS, 1, &["n.safetensors"]),
    ("pictures into a file", |w| w.write("out", ""), GENERATE, 1, &["out"]),
    (
        "attention below a file",
        |w| {
            w.write("i.jpg", photograph());
            w.write("out", "")
        },
        PROBE,
        1,
        &["out"],
    ),
];

#[test]
fn base_models() {
    try_all(World::whole, MODEL);
}

#[test]
fn adapters() {
    try_all(World::whole, ADAPTERS);
}

#[test]
fn commands() {
    try_all(World::whole, COMMANDS);
}

/// Unusual but valid: prompts of any length and script, no prompt, a T5 length of one token.
#[test]
fn what_is_no_error() {
    let world = World::whole();
    let long = "a red circle on a green field, ".repeat(200);
    let prompts = ["", long.as_str(), "🦀 — 漢字 \u{0}x \u{202e}", "  \t "].map(|prompt| prompt.replace('\0', ""));
    let mut command = world.command(&["generate", "--model", "model", "--size", "16", "--steps", "1", "--out", "out"]);
    let output = command.arg("--prompt").args(prompts).output().expect("seg4diff");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(world.path("out/000003.png").is_file());
    world.write("i.jpg", photograph());
    let mut command = world.command(PROBE);
    let output = command.args(["--noise", "n.safetensors"]).output().expect("seg4diff");
    assert!(!output.status.success() && !world.path("out/attention.safetensors").exists());
    let output = world.command(PROBE).output().expect("seg4diff");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(world.path("out/attention.safetensors").is_file());
}
