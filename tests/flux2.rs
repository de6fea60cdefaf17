//! FLUX.2-klein from end to end, as diffusers has it: text, latents, pictures, and runs. Fixtures:
//! tests/fixtures/flux2/gen.py; a whole training step is compared in tests/train_step.rs.
mod drawn;
mod folder_copy;
mod outcome;
mod smoke_run;

use candle_core::{DType, Device, Tensor};
use drawn::{Fixtures, LABELLED, difference, open, origin_of, relative, seg4diff, shard};
use seg4diff::config::TextEncoderKind::{ClipL, Qwen3};
use seg4diff::model::adapters::formats::{self, Format, Origin};
use seg4diff::model::text::qwen_tokenizer::QwenTokenizer;
use seg4diff::model::text::{NameTokens, TextEncoders};
use seg4diff::model::vae::Vae;
use seg4diff::model::weights::{read_all, write};
use serde_json::Value;
use smoke_run::{Run, run, succeed};
use std::collections::BTreeMap;
use std::path::Path;

const FIXTURES: Fixtures = Fixtures("tests/fixtures/flux2");
const MODEL: &str = "tests/fixtures/flux2/klein";

fn copy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    folder_copy::copy(Path::new(MODEL), folder.path());
    folder
}

fn encoders(tokens: usize) -> TextEncoders {
    TextEncoders::load(&open(Path::new(MODEL)), &[Qwen3], tokens, DType::F32, &Device::Cpu).expect("encoders")
}

#[test]
fn prompts_become_three_of_qwens_hidden_states() {
    let (settings, expected) = (FIXTURES.settings(), FIXTURES.tensors());
    let tokens = settings["tokens"].as_u64().expect("tokens") as usize;
    let ids = settings["ids"].as_object().expect("ids");
    let listed = settings["prompts"].as_array().expect("prompts").iter().filter_map(Value::as_str);
    let odd = ["", " two  spaces ", "it's the dog's 12 t-shirts, isn't it?", "naïve café – 日本語 🐈"];
    let prompts: Vec<&str> = listed.chain(odd).chain(["line\nbreak\r\n\n and tab\t."]).collect();
    let encoders = encoders(tokens);
    let found = encoders.encode(&prompts).expect("text");
    let off = relative(&found.context, &expected["context"]);
    assert!(off < 1e-5, "{off}");
    assert_eq!((encoders.tokens(), found.zeros, found.pooled.dims()), (tokens, 0, &[prompts.len(), 0][..]));
    // Alone it is what it is among others, to the bit.
    for (index, prompt) in prompts.iter().enumerate() {
        let alone = encoders.encode(&[prompt]).expect("text").context;
        assert!(relative(&alone, &found.context.narrow(0, index, 1).expect("one")) < 1e-6, "{prompt}");
    }

    let tokenizer = QwenTokenizer::open(&Path::new(MODEL).join("tokenizer")).expect("tokenizer");
    for (prompt, ids) in ids {
        let wanted: Vec<u32> = ids.as_array().expect("ids").iter().map(|id| id.as_u64().expect("id") as u32).collect();
        let found = tokenizer.encode(prompt, wanted.len() + 3).expect("ids");
        assert_eq!((&found.ids[..wanted.len()], found.filled), (&wanted[..], wanted.len()), "{prompt:?}");
        let cut = tokenizer.encode(prompt, 7).expect("ids");
        assert_eq!((&cut.ids[..], cut.filled), (&wanted[..7], 7), "{prompt:?}");
        // Every token of a prompt lies in it, none is left out.
        let ranges = tokenizer.token_ranges(prompt).expect("ranges");
        assert!(ranges.iter().all(|range| prompt.get(range.clone()).is_some()), "{prompt:?}: {ranges:?}");
        assert_eq!(tokenizer.places(prompt).expect("places").len(), ranges.len());
    }
    for (kinds, said) in [(vec![ClipL], "\"clip_l\""), (vec![], "\"qwen3\"")] {
        let Err(problem) = TextEncoders::without_weights(&open(Path::new(MODEL)), &kinds, 64, &Device::Cpu) else {
            panic!("{kinds:?} are taken")
        };
        assert!(problem.to_string().contains(said), "{problem}");
    }
}

/// Also from vocab.json and merges.txt, with a template in tokenizer_config.json.
#[test]
fn a_tokenizer_may_be_in_other_files() {
    let folder = copy();
    let at = |name: &str| folder.path().join("tokenizer").join(name);
    let usual = QwenTokenizer::open(&at("")).expect("tokenizer");
    let json = |name: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(at(name)).expect("file")).expect("JSON")
    };
    let model = json("tokenizer.json")["model"].clone();
    std::fs::write(at("vocab.json"), model["vocab"].to_string()).expect("vocab.json");
    let pair = |pair: &Value| format!("{} {}\n", pair[0].as_str().expect("left"), pair[1].as_str().expect("right"));
    let merges: String = model["merges"].as_array().expect("merges").iter().map(pair).collect();
    std::fs::write(at("merges.txt"), format!("#version: 0.2\n{merges}")).expect("merges.txt");
    let mut config = json("tokenizer_config.json");
    config["chat_template"] = std::fs::read_to_string(at("chat_template.jinja")).expect("template").into();
    let added = json("tokenizer.json")["added_tokens"].clone();
    let added = added.as_array().expect("added").iter().map(|token| (token["id"].to_string(), token.clone()));
    config["added_tokens_decoder"] = Value::Object(added.collect());
    std::fs::write(at("tokenizer_config.json"), config.to_string()).expect("config");
    for gone in ["tokenizer.json", "chat_template.jinja"] {
        std::fs::remove_file(at(gone)).expect("remove");
    }
    let other = QwenTokenizer::open(&at("")).expect("tokenizer");
    for prompt in ["a photo of a cat", "It's <|im_end|> naïve", ""] {
        assert_eq!(other.encode(prompt, 90).expect("ids"), usual.encode(prompt, 90).expect("ids"), "{prompt}");
    }
    config["padding_side"] = "left".into();
    std::fs::write(at("tokenizer_config.json"), config.to_string()).expect("config");
    let problem = QwenTokenizer::open(&at("")).err().map(|problem| problem.to_string()).unwrap_or_default();
    assert!(problem.contains("padding_side is \"left\""), "{problem}");
}

/// The templates' own tokens are never words, and a name's tokens depend on whether another name is before it.
#[test]
fn words_are_found_in_the_template() {
    // "<|im_start|>", "u", "se", "r", "\n" are before a prompt.
    let encoders = encoders(60);
    let names = ["cat", "red bus", "zebra", "3 umbrella"];
    let spans = encoders.token_spans(&names).expect("spans");
    let tokenizer = QwenTokenizer::open(&Path::new(MODEL).join("tokenizer")).expect("tokenizer");
    let (prompt, before) = (names.join(" "), tokenizer.before());
    assert_eq!(before, 5);
    let ranges = tokenizer.token_ranges(&prompt).expect("ranges");
    for (name, span) in names.iter().zip(&spans) {
        let span = span.clone().expect("fits");
        let bytes = ranges[span.start - before].start..ranges[span.end - before - 1].end;
        assert_eq!(prompt[bytes].trim_start(), *name);
    }
    assert_eq!(spans[0], Some(5..6));
    // In this vocabulary a space before a word is a token of its own, which is the name's only where it is inside.
    assert_eq!(encoders.tokens_of_name("cat").expect("tokens"), NameTokens { first: 1, between: 1, behind: 1 });
    assert_eq!(encoders.text_places(), 5..60);
    assert_eq!(encoders.words_of("a cat").expect("words"), Some(5..8));
    assert_eq!(encoders.words_of("").expect("words"), Some(5..5));
    let long = ["cat"; 90].join(" ");
    assert_eq!(encoders.words_of(&long).expect("words"), Some(5..60));
    let cut = encoders.cut(&long).expect("cut").expect("is longer");
    assert_eq!((cut.encoder.as_str(), cut.tokens, cut.read), ("Qwen3", 179, 55));
    assert!(cut.rest.starts_with("cat cat") && encoders.cut("a cat").expect("cut").is_none());
    let spans = encoders.token_spans(&["cat"; 40]).expect("spans");
    assert_eq!(spans.iter().filter(|span| span.is_some()).count(), 28);
    assert!(spans[27].is_some() && spans[28].is_none());
}

#[test]
fn chat_templates_are_rendered_as_transformers_does() {
    let settings = FIXTURES.settings();
    let prompt = settings["rendered_prompt"].as_str().expect("prompt");
    for (name, wanted) in settings["rendered"].as_object().expect("rendered") {
        let folder = copy();
        let tokenizer = folder.path().join("tokenizer");
        std::fs::copy(FIXTURES.path("templates").join(name), tokenizer.join("chat_template.jinja")).expect("copy");
        let opened = QwenTokenizer::open(&tokenizer).expect("tokenizer");
        assert_eq!(opened.templated(prompt).expect("template"), wanted.as_str().expect("text"), "{name}");
    }
}

#[test]
fn latents_are_packed_and_normalised() {
    let expected = FIXTURES.tensors();
    let vae = Vae::load(&open(Path::new(MODEL)), &Device::Cpu).expect("autoencoder");
    let packed = vae.encode(&expected["image"]).expect("latents");
    assert!(relative(&packed, &expected["packed"]) < 1e-4);
    let decoded = vae.decode(&expected["packed"]).expect("image");
    assert!(relative(&decoded, &expected["decoded"]) < 1e-4);
    let odd = Tensor::zeros((1, 3, 24, 32), DType::F32, &Device::Cpu).expect("image");
    assert!(vae.encode(&odd).is_err_and(|error| error.to_string().contains("multiples of 16")));
}

fn pictures(model: &Path, more: &[&str]) -> Vec<u8> {
    FIXTURES.pictures(model, &FIXTURES.settings()["steps"], more)
}

#[test]
fn pictures_are_those_of_diffusers() {
    let model = copy();
    let plain = pictures(model.path(), &[]);
    let lora = FIXTURES.path("lora.safetensors").display().to_string();
    let adapted = pictures(model.path(), &["--lora", &lora]);
    for (found, name) in [(&plain, "plain"), (&adapted, "lora")] {
        let off = FIXTURES.off(found, name);
        assert!(off < 0.05, "{name}: {off} of 255");
    }
    assert!(difference(&adapted, &plain) > 1.0);
    // Away from another prompt, and not guided at all.
    assert!(difference(&pictures(model.path(), &["--negative", "grass"]), &plain) > 0.1);
    assert!(difference(&pictures(model.path(), &["--guidance", "1"]), &plain) > 1.0);
    // A distilled model is not guided, whatever is asked for.
    let index = model.path().join("model_index.json");
    let text = std::fs::read_to_string(&index).expect("index");
    std::fs::write(&index, text.replace("\"is_distilled\": false", "\"is_distilled\": true")).expect("index");
    assert!(pictures(model.path(), &[]) == pictures(Path::new(MODEL), &["--guidance", "1"]), "distilled");
    std::fs::write(&index, text).expect("index");
    shard(model.path());
    assert!(pictures(model.path(), &[]) == plain, "shards");
}

const SETTINGS: &[&str] = &[
    "model.path=tests/fixtures/flux2/klein",
    "model.text_encoders=[\"qwen3\"]",
    "model.max_sequence_length=80",
    "model.expert_layers=[0, 1]",
    "lora.targets=[\"attn.to_q\", \"attn.add_k_proj\", \"ff.linear_out\", \"attn.to_qkv_mlp_proj\", \"attn.to_out\"]",
    "data.resolution=64",
    "data.flip=true",
];

#[test]
fn a_run_has_the_same_bytes_however_it_goes() {
    drawn::check_bytes(SETTINGS);
}

/// A learnt prompt's tokens are Qwen3's, those of the template included.
#[test]
fn a_prompt_is_learnt() {
    let settings = [SETTINGS, &["model.learnable_prompt=true", "train.steps=2", "model.expert_layers=2"]].concat();
    let run = Run::new(&settings);
    run.finish(&[]);
    let prompt = read_all(&run.path("prompt.safetensors")).expect("prompt");
    assert!(prompt.values().any(|tensor| tensor.dims().contains(&80)), "{:?}", prompt.keys());
    // Both pictures are told the learnt prompt, for 80 tokens.
    let file = run.path("prompt.safetensors");
    let out = tempfile::tempdir().expect("folder");
    let mut command = seg4diff(&["generate", "--device", "cpu", "--model", MODEL]);
    command.args(["--prompt", "a cat", "--size", "64", "--steps", "2", "--max-sequence-length", "80"]);
    succeed(command.arg("--prompt-tokens").arg(&file).arg("--out").arg(out.path()));
    assert!(out.path().join("000000.png").exists());
}

/// What `--check` says before anything is loaded.
#[test]
fn settings_that_do_not_suit_are_said_at_once() {
    let refused = [
        ("model.expert_layers=3", "there is no block 3"),
        ("data.resolution=72", "72 is not a multiple of 16"),
        ("model.text_encoders=[\"clip_l\"]", "model.text_encoders: text encoder \"clip_l\""),
    ];
    drawn::check_refused(SETTINGS, &refused);
}

/// Every form is read back; kohya's and the original's are told from FLUX.1's by the sizes of the layers.
#[test]
fn adapters_have_the_names_of_other_tools() {
    let origin = origin_of(Path::new(MODEL));
    let adapters = formats::read(&FIXTURES.path("lora.safetensors")).expect("adapters");
    let out = tempfile::tempdir().expect("folder");
    for origin in [&origin, &Origin::default()] {
        let file = out.path().join("kohya.safetensors");
        formats::export(&adapters, Format::Comfyui, &file, origin).expect("export");
        let tensors = read_all(&file).expect("tensors");
        for stem in ["double_blocks_0_img_attn_qkv", "double_blocks_0_txt_attn_proj", "double_blocks_0_img_mlp_0"] {
            assert!(tensors.contains_key(&format!("lora_unet_{stem}.lora_down.weight")), "{:?}", tensors.keys());
        }
        for stem in ["single_blocks_0_linear1", "single_blocks_1_linear2"] {
            assert!(tensors.contains_key(&format!("lora_unet_{stem}.lora_down.weight")), "{:?}", tensors.keys());
        }
        assert_eq!(formats::read(&file).expect("adapters").keys().collect::<Vec<_>>(), {
            // to_q is part of the fused layer, whose other parts are zero and left out.
            adapters.keys().collect::<Vec<_>>()
        });
    }

    // The names of the original checkpoint, as ComfyUI has them.
    let tensor = |rows: usize, columns: usize| Tensor::ones((rows, columns), DType::F32, &Device::Cpu).expect("ones");
    let layers = [
        ("single_blocks.1.linear1", 48, 432),
        ("single_blocks.1.linear2", 192, 48),
        ("double_blocks.0.img_mlp.2", 144, 48),
    ];
    let mut tensors = BTreeMap::new();
    for (layer, inner, outer) in layers {
        tensors.insert(format!("diffusion_model.{layer}.lora_A.weight"), tensor(2, inner));
        tensors.insert(format!("diffusion_model.{layer}.lora_B.weight"), tensor(outer, 2));
    }
    let file = out.path().join("original.safetensors");
    write(&file, &tensors, &BTreeMap::new()).expect("write");
    let read = formats::read(&file).expect("adapters");
    let wanted = [
        "single_transformer_blocks.1.attn.to_out",
        "single_transformer_blocks.1.attn.to_qkv_mlp_proj",
        "transformer_blocks.0.ff.linear_out",
    ];
    assert_eq!(read.keys().cloned().collect::<Vec<_>>(), wanted);
    assert_eq!(read[wanted[1]].sizes(), (48, 432));
}

/// The commands that look at attention take blocks of both kinds: one double-stream block, then two single-stream blocks.
#[test]
fn attention_is_looked_at() {
    let common = ["--model", MODEL, "--device", "cpu", "--size", "64", "--max-sequence-length", "80"];
    drawn::check_attention(&common, "0,2", 80, 3);
    let out = tempfile::tempdir().expect("folder");
    for name in ["segmentation", "unsupervised"] {
        let scores = out.path().join(format!("{name}.json"));
        let mut command = seg4diff(&["evaluate", name, "--layer", "1"]);
        succeed(command.args(common).args(LABELLED).arg("--json").arg(&scores));
        assert!(scores.exists(), "{name}");
    }
}

#[test]
fn a_run_is_measured() {
    drawn::check_measured(SETTINGS);
}

/// Prompts are shown as Qwen3's tokenizer cuts them.
#[test]
fn samples_are_shown() {
    let out = tempfile::tempdir().expect("folder");
    let mut command = seg4diff(&["inspect", "--config", "configs/smoke.toml", "--count", "2"]);
    for setting in SETTINGS {
        command.args(["--set", setting]);
    }
    succeed(command.arg("--out").arg(out.path()));
    let page = std::fs::read_to_string(out.path().join("inspect.html")).expect("page");
    assert!(page.contains("Qwen3"), "{page}");
}

/// One error that names file and key.
#[test]
fn sizes_that_make_no_model_are_refused() {
    for (file, from, to, said) in [
        ("transformer", "\"guidance_embeds\": false", "\"guidance_embeds\": true", "only klein is known"),
        ("transformer", "\"mlp_ratio\": 3.0", "\"mlp_ratio\": 2.5", "mlp_ratio is 2.5"),
        ("transformer", "\"eps\": 1e-06", "\"eps\": 1e-05", "eps is 0.00001"),
        ("transformer", "\"rope_theta\": 2000", "\"rope_theta\": 0", "rope_theta is 0"),
        (
            "transformer",
            "\"in_channels\": 64",
            "\"in_channels\": 32",
            "x_embedder.weight has shape [48, 64], expected [48, 32]",
        ),
        (
            "transformer",
            "\"joint_attention_dim\": 96",
            "\"joint_attention_dim\": 90",
            "3 of Qwen3's states are 96 wide",
        ),
        ("vae", "\"batch_norm_eps\": 0.0001", "\"batch_norm_eps\": -1", "batch_norm_eps is -1"),
        ("vae", "\"latent_channels\": 16", "\"latent_channels\": 8", "has shape"),
        ("text_encoder", "\"num_hidden_layers\": 29", "\"num_hidden_layers\": 27", "num_hidden_layers is 27"),
        (
            "text_encoder",
            "\"num_key_value_heads\": 2",
            "\"num_key_value_heads\": 3",
            "no multiple of num_key_value_heads 3",
        ),
        ("text_encoder", "\"rope_type\": \"default\"", "\"rope_type\": \"yarn\"", "rope_type is set"),
        (
            "text_encoder",
            "\"max_position_embeddings\": 1024",
            "\"max_position_embeddings\": 20",
            "max_position_embeddings is 20",
        ),
    ] {
        let model = copy();
        let path = model.path().join(file).join("config.json");
        let text = std::fs::read_to_string(&path).expect("config");
        assert!(text.contains(from), "{from}: {text}");
        std::fs::write(&path, text.replace(from, to)).expect("config");
        let out = tempfile::tempdir().expect("folder");
        let mut command = seg4diff(&["generate", "--device", "cpu", "--prompt", "a cat"]);
        command.args(["--size", "64", "--steps", "1", "--max-sequence-length", "64", "--model"]).arg(model.path());
        let (output, text) = run(command.arg("--out").arg(out.path()));
        assert!(!output.status.success() && text.contains(said), "{to}: {text}");
        assert!(text.contains("config.json") || text.contains(".safetensors"), "{to}: {text}");
    }
}
