//! A model in one file with the names of the original code, and in its folder: the same bits.
mod folder_copy;
mod original_files;
mod outcome;
mod smoke_run;

use candle_core::{DType, Device, Tensor};
use original_files::{Tensors, flux_transformer, flux2_transformer, part, sd3_transformer, vae, write_parts};
use outcome::Outcome;
use seg4diff::config::{PartPaths, TextEncoderKind};
use seg4diff::model::families;
use seg4diff::model::weights::files::{ModelFiles, Part};
use seg4diff::model::weights::{read_all, write};
use smoke_run::{Run, run, succeed};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const TRANSFORMER: &str = "model.diffusion_model.";
const VAE: &str = "first_stage_model.";

/// A model's folder, and files that are made of it.
struct Model {
    folder: tempfile::TempDir,
    out: tempfile::TempDir,
}

impl Model {
    fn of(source: &str) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        folder_copy::copy(Path::new(source), folder.path());
        Self { folder, out: tempfile::tempdir().expect("folder") }
    }

    /// The smoke model, with CLIP-L as Stable Diffusion 3 uses it: its state is not projected.
    fn smoke() -> Self {
        let model = Self::of("checkpoints/smoke-base");
        let file = model.path("text_encoder/model.safetensors");
        let mut tensors = read_all(&file).expect("text encoder");
        let projection = tensors.get_mut("text_projection.weight").expect("projection");
        *projection = Tensor::eye(projection.dims()[0], DType::F32, &Device::Cpu).expect("identity");
        write(&file, &tensors, &BTreeMap::new()).expect("text encoder");
        model
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn part(&self, name: &str) -> Tensors {
        part(&self.path(name))
    }

    /// Parts, each behind its prefix, in one file.
    fn write(&self, name: &str, parts: &[(&str, &Tensors)]) -> PathBuf {
        let file = self.out.path().join(name);
        write_parts(&file, parts);
        file
    }

    /// All of it in one file.
    fn whole(&self) -> PathBuf {
        self.whole_of("vae")
    }

    /// All of it in one file, the autoencoder from this folder.
    fn whole_of(&self, autoencoder: &str) -> PathBuf {
        let (transformer, decoder) = (sd3_transformer(&self.part("transformer")), vae(&self.part(autoencoder)));
        let mut clip_l = self.part("text_encoder");
        clip_l.remove("text_projection.weight");
        let clip_g = self.part("text_encoder_2");
        self.write(
            "sd3_incl_clips.safetensors",
            &[
                (TRANSFORMER, &transformer),
                (VAE, &decoder),
                ("text_encoders.clip_l.transformer.", &clip_l),
                ("text_encoders.clip_g.transformer.", &clip_g),
            ],
        )
    }

    /// The argument that names its folder as that of tokenizers and configurations.
    fn config(&self) -> [String; 2] {
        ["--model-file".into(), format!("config={}", self.folder.path().display())]
    }
}

/// The picture that `generate` draws.
fn draw(model: &Path, more: &[String]) -> Result<Vec<u8>, String> {
    draw_by(Command::new(env!("CARGO_BIN_EXE_seg4diff")), model, more)
}

fn draw_by(mut command: Command, model: &Path, more: &[String]) -> Result<Vec<u8>, String> {
    let out = tempfile::tempdir().expect("folder");
    command.args(["generate", "--prompt", "a red circle", "--size", "64", "--steps", "2", "--device", "cpu"]);
    let (output, said) = run(command.arg("--model").arg(model).arg("--out").arg(out.path()).args(more));
    match output.status.success() {
        true => Ok(std::fs::read(out.path().join("000000.png")).expect("picture")),
        false => Err(said),
    }
}

fn file(key: &str, path: &Path) -> [String; 2] {
    ["--model-file".into(), format!("{key}={}", path.display())]
}

#[test]
fn one_file_draws_the_picture_of_its_folder() {
    let model = Model::smoke();
    let wanted = draw(model.folder.path(), &[]).expect("folder");
    let whole = model.whole();
    assert!(draw(&whole, &model.config()).expect("one file") == wanted);

    // The transformer alone, its names without a prefix; the others elsewhere, in any names.
    let alone = model.write("transformer.safetensors", &[("", &sd3_transformer(&model.part("transformer")))]);
    let ae = model.write("ae.safetensors", &[("", &vae(&model.part("vae")))]);
    let clip_l = model.path("text_encoder/model.safetensors");
    let elsewhere =
        [model.config(), file("vae", &ae), file("clip_l", &clip_l), file("clip_g", &model.path("text_encoder_2"))];
    assert!(draw(&alone, &elsewhere.concat()).expect("parts") == wanted);
    let in_diffusers_names = model.write("diffusers.safetensors", &[("", &model.part("transformer"))]);
    let elsewhere = [
        model.config(),
        file("vae", &model.path("vae/diffusion_pytorch_model.safetensors")),
        file("clip_l", &whole),
        file("clip_g", &whole),
    ];
    assert!(draw(&in_diffusers_names, &elsewhere.concat()).expect("diffusers' names") == wanted);
    // In a folder of the diffusers layout, that has the tokenizers.
    let inside = model.path("sd3.safetensors");
    std::fs::copy(&whole, &inside).expect("copy");
    assert!(draw(&inside, &[]).expect("beside") == wanted);
    // A part in the place of a folder's: an autoencoder of zeros.
    let zeros =
        model.part("vae").iter().map(|(name, tensor)| (name.clone(), tensor.zeros_like().expect("zeros"))).collect();
    let zeros = model.write("zeros.safetensors", &[("", &zeros)]);
    assert!(draw(model.folder.path(), &file("vae", &zeros)).expect("another autoencoder") != wanted);
    assert!(draw(model.folder.path(), &file("vae", &ae)).expect("the same autoencoder") == wanted);
}

/// What `hf:ORG/NAME/FILE` names, from the hub's cache and without a network.
#[test]
fn a_file_on_the_hub_is_as_one_here() {
    let model = Model::smoke();
    let wanted = draw(model.folder.path(), &[]).expect("folder");
    let (cache, commit) = (tempfile::tempdir().expect("folder"), "0123456789abcdef0123456789abcdef01234567");
    let repository = cache.path().join("models--org--tiny");
    let snapshot = repository.join("snapshots").join(commit);
    std::fs::create_dir_all(snapshot.join("split")).expect("snapshot");
    std::fs::create_dir_all(repository.join("refs")).expect("refs");
    std::fs::write(repository.join("refs/main"), commit).expect("branch");
    std::fs::copy(model.whole(), snapshot.join("whole.safetensors")).expect("copy");
    write_parts(&snapshot.join("split/ae.safetensors"), &[("", &vae(&model.part("vae")))]);
    let drawn = |path: &str, more: &[String]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
        command.env("HF_HUB_CACHE", cache.path()).env("HF_HUB_OFFLINE", "1");
        draw_by(command, Path::new(path), &[&model.config()[..], more].concat())
    };
    let ae = file("vae", Path::new("hf:org/tiny/split/ae.safetensors"));
    for path in ["hf:org/tiny/whole.safetensors".into(), format!("hf:org/tiny@{commit}/whole.safetensors")] {
        assert!(drawn(&path, &[]).expect("one file") == wanted, "{path}");
        assert!(drawn(&path, &ae).expect("a part") == wanted, "{path}");
    }
    for (path, more, said) in [
        ("hf:org/tiny/other.safetensors", vec![], "hf:org/tiny/other.safetensors: cannot download other.safetensors"),
        ("hf:org/tiny/whole.ckpt", vec![], "with /file behind it"),
        ("hf:org/tiny/whole.safetensors", file("vae", Path::new("hf:org/tiny")).to_vec(), "expected hf:ORG/NAME/FILE"),
    ] {
        let refused = drawn(path, &more).expect_err("refused");
        assert!(refused.contains(said) && refused.matches("error:").count() == 1, "{path}: {refused}");
    }
}

/// Every tensor under its name in diffusers, and every size: of each kind of transformer.
#[test]
fn names_and_sizes_are_those_of_the_folder() {
    let steps = "tests/fixtures/train_step";
    for (folder, original) in [
        (format!("{steps}/sd3"), sd3_transformer as fn(&Tensors) -> Tensors),
        (format!("{steps}/sd3.5-medium"), sd3_transformer),
        (format!("{steps}/sd3.5-large"), sd3_transformer),
        ("tests/fixtures/flux/dev".into(), flux_transformer),
        ("tests/fixtures/flux/schnell".into(), flux_transformer),
        ("tests/fixtures/flux2/klein".into(), flux2_transformer),
    ] {
        let model = Model::of(&folder);
        let wanted = model.part("transformer");
        for prefix in ["", TRANSFORMER] {
            let one_file = model.write("one.safetensors", &[(prefix, &original(&wanted))]);
            let named = PartPaths { config: Some(model.folder.path().display().to_string()), ..PartPaths::default() };
            let files = ModelFiles::open_with(&one_file.display().to_string(), None, &named).expect("one file");
            let weights = files.weights(Part::Transformer, DType::F32, &Device::Cpu).expect("weights");
            assert_eq!(weights.names(), wanted.keys().collect::<Vec<_>>(), "{folder}");
            for (name, tensor) in &wanted {
                let found = weights.get(name, tensor.dims()).expect("tensor");
                let bits =
                    |tensor: &Tensor| tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("values");
                assert!(bits(&found) == bits(&tensor.to_dtype(DType::F32).expect("f32")), "{folder}: {name}");
            }
            weights.finish().expect("all are used");

            // The file says all sizes but the width of a head, where it has no norms of heads.
            let family = families::of(&files).expect("family");
            let found = family.config(&files).expect("sizes");
            let loaded = family.load(&files, None, DType::F32, &Device::Cpu).expect("model");
            assert_eq!(found, loaded.config);
            let text = std::fs::read_to_string(model.path("transformer/config.json")).expect("config");
            let config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(config["num_attention_heads"], found.num_attention_heads, "{folder}");
            assert_eq!(config["attention_head_dim"], found.attention_head_dim, "{folder}");
            assert_eq!(config["joint_attention_dim"], found.joint_attention_dim, "{folder}");
            let pooled = config.get("pooled_projection_dim").and_then(|size| size.as_u64()).unwrap_or_default();
            assert_eq!(pooled, found.pooled_projection_dim as u64, "{folder}");
            assert_eq!(config["num_layers"], found.block_lists[0].1, "{folder}");
        }
    }
    // The autoencoder's, of which diffusers has the attention as linear layers.
    let model = Model::smoke();
    let files = ModelFiles::open_with(&model.whole().display().to_string(), None, &PartPaths::default()).expect("file");
    let weights = files.weights(Part::Vae, DType::F32, &Device::Cpu).expect("weights");
    assert_eq!(weights.names(), model.part("vae").keys().collect::<Vec<_>>());
}

const STEPS: u64 = 3;

/// Everything that a run leaves, but for the fingerprint of its base model.
fn trained(settings: &[&str]) -> Outcome {
    let run = Run::new(&[settings, &["train.steps=3", "train.batch=2", "checkpoint.every=0"]].concat());
    run.finish(&[]);
    let mut outcome = Outcome::of(&run, STEPS);
    outcome.state["model"].take();
    outcome
}

#[test]
fn training_on_one_file_has_the_bytes_of_training_on_its_folder() {
    let model = Model::smoke();
    let (folder, whole) = (model.folder.path().display().to_string(), model.whole().display().to_string());
    let wanted = trained(&[&format!("model.path={folder}")]);
    let paths = [format!("model.path={whole}"), format!("model.files.config={folder}")];
    wanted.check(&trained(&paths.each_ref().map(String::as_str)), "one file");

    // The cache of one file, and a checkpoint that goes on there, but not with the folder.
    let cache = model.out.path().join("cache").display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(["prepare", "cache", "--config", "configs/smoke.toml", "--out", &cache]);
    command.args(paths.iter().flat_map(|setting| ["--set", setting.as_str()]));
    succeed(&mut command);
    let cached = format!("data.cache={cache}");
    let settings: Vec<&str> = paths.iter().map(String::as_str).chain([cached.as_str()]).collect();
    wanted.check(&trained(&settings), "cached");

    let stopped = Run::new(&[&settings[..2], &["train.steps=4", "checkpoint.every=2", "train.batch=2"]].concat());
    stopped.finish(&["--set", "train.steps=2"]);
    let resume = |more: &[&str]| run(&mut stopped.train(&[&["--resume"], more].concat()));
    let (output, said) = resume(&["--set", &format!("model.path={folder}")]);
    assert!(
        !output.status.success() && said.contains("--force=model") && said.contains("one file count as two"),
        "{said}"
    );
}

#[test]
fn what_is_missing_is_said_with_its_usual_name_and_key() {
    let model = Model::smoke();
    let alone = model.write("transformer.safetensors", &[("", &sd3_transformer(&model.part("transformer")))]);
    let check = |settings: &[String]| {
        let mut command = Run::new(&[]).train(&["--check"]);
        let (output, said) = run(command.args(settings.iter().flat_map(|setting| ["--set", setting.as_str()])));
        (output.status.success(), said)
    };
    let path = format!("model.path={}", alone.display());
    let config = format!("model.files.config={}", model.folder.path().display());
    let (ok, said) = check(&[path.clone(), config.clone()]);
    assert!(!ok, "{said}");
    for (file, key) in [("clip_l.safetensors", "clip_l"), ("clip_g.safetensors", "clip_g"), ("vae/diffusion", "vae")] {
        assert!(said.contains(file) && said.contains(&format!("model.files.{key}")), "{key}: {said}");
    }
    let whole = format!("model.path={}", model.whole().display());
    let (ok, said) = check(&[whole.clone(), config.clone()]);
    assert!(ok, "{said}");
    let (ok, said) = check(&[whole.clone(), config.clone(), "model.expert_layers=[3]".into()]);
    assert!(!ok && said.contains("there is no block 3") && said.contains("has blocks 0 to 2"), "{said}");
    let (ok, said) = check(&[whole.clone(), config.clone(), "model.text_encoders=[\"clip_l\", \"t5\"]".into()]);
    assert!(!ok && said.contains("t5xxl_fp16.safetensors") && said.contains("model.files.t5"), "{said}");
    // A folder, of which a part lies elsewhere.
    std::fs::rename(model.path("vae"), model.path("elsewhere")).expect("rename");
    let folder = format!("model.path={}", model.folder.path().display());
    let (ok, said) = check(std::slice::from_ref(&folder));
    assert!(!ok && said.contains("vae/config.json is missing"), "{said}");
    let vae = |path: &Path| format!("model.files.vae={}", path.display());
    for (path, is_ok) in [(model.path("elsewhere"), true), (model.whole_of("elsewhere"), true), (alone, false)] {
        let (ok, said) = check(&[folder.clone(), vae(&path)]);
        assert_eq!(ok, is_ok, "{said}");
        assert!(ok || said.contains("model.files: ") && said.contains("it is Stable Diffusion 3"), "{said}");
    }
    let (ok, said) = check(&[whole, "model.files.config=tests/fixtures/flux/dev".into()]);
    assert!(!ok && said.contains("model.files.config: it is of FluxPipeline"), "{said}");
}

#[test]
fn a_file_that_is_no_model_is_said_to_be_what_it_is() {
    let model = Model::smoke();
    let whole = std::fs::read(model.whole()).expect("file");
    let write = |name: &str, bytes: &[u8]| {
        let file = model.out.path().join(name);
        std::fs::write(&file, bytes).expect("write");
        file
    };
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    let clip = model.path("text_encoder/model.safetensors");
    for (file, said) in [
        (write("short.safetensors", &whole[..whole.len() - 100]), "cut short or damaged"),
        (write("pointer.safetensors", pointer), "git lfs pull"),
        (write("empty.safetensors", b""), "not a safetensors file"),
        (write("model.ckpt", b"PK\x03\x04"), "a pickle of PyTorch"),
        (write("renamed.safetensors", b"GGUF"), "must end in .gguf"),
        ("tests/fixtures/flux/lora.safetensors".into(), "it is a LoRA"),
        (clip.clone(), "it is a CLIP text encoder"),
        (model.path("vae/diffusion_pytorch_model.safetensors"), "it is an autoencoder"),
    ] {
        let refused = draw(&file, &model.config()).expect_err("refused");
        assert!(refused.contains(said) && refused.lines().count() == 1, "{}: {refused}", file.display());
    }
    let refused = draw(&model.whole(), &[model.config(), file("vae", &clip)].concat()).expect_err("no autoencoder");
    assert!(refused.contains("no autoencoder for model.files.vae: it is a CLIP text encoder"), "{refused}");
    let refused = draw(&model.whole(), &[model.config(), file("t6", &clip)].concat()).expect_err("no key");
    assert!(refused.contains("expected vae, clip_l, clip_g, t5, qwen3 or config"), "{refused}");

    // A tensor too many, and one too few.
    let mut transformer = sd3_transformer(&model.part("transformer"));
    let tensor = transformer.remove("joint_blocks.1.x_block.mlp.fc1.bias").expect("a bias");
    let short = model.write("fewer.safetensors", &[(TRANSFORMER, &transformer)]);
    let parts =
        [model.config(), file("vae", &model.whole()), file("clip_l", &model.whole()), file("clip_g", &model.whole())];
    let refused = draw(&short, &parts.concat()).expect_err("a tensor too few");
    assert!(refused.contains("transformer_blocks.1.ff.net.0.proj.bias is missing"), "{refused}");
    transformer.insert("joint_blocks.1.x_block.mlp.fc1.bias".into(), tensor.clone());
    transformer.insert("joint_blocks.1.x_block.mlp.fc3.bias".into(), tensor);
    let long = model.write("more.safetensors", &[(TRANSFORMER, &transformer)]);
    let refused = draw(&long, &parts.concat()).expect_err("a tensor too many");
    assert!(refused.contains("tensor joint_blocks.1.x_block.mlp.fc3.bias"), "{refused}");
}

/// What looks at a model takes a file, too; an export says which model was trained on.
#[test]
fn one_file_is_looked_at_and_named() {
    let model = Model::smoke();
    let (whole, out) = (model.whole(), model.out.path());
    let command = |name: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
        command.current_dir(env!("CARGO_MANIFEST_DIR")).arg(name);
        command
    };
    let probed = |path: &Path, more: &[String], name: &str| {
        let mut command = command("probe");
        command.args([
            "--image",
            "tests/fixtures/segmentation/images/b/street.png",
            "--prompt",
            "a cat",
            "--size",
            "64",
        ]);
        command
            .args(["--layer", "1", "--device", "cpu", "--model"])
            .arg(path)
            .args(more)
            .arg("--out")
            .arg(out.join(name));
        succeed(&mut command);
        std::fs::read(out.join(name).join("attention.safetensors")).expect("attention")
    };
    assert!(probed(&whole, &model.config(), "file") == probed(model.folder.path(), &[], "folder"));

    let settings =
        [format!("model.path={}", whole.display()), format!("model.files.config={}", model.folder.path().display())];
    let run = Run::new(&[&settings.each_ref().map(String::as_str)[..], &["train.steps=1"]].concat());
    run.finish(&[]);
    let file = out.join("kohya.safetensors");
    let mut export = command("export");
    export
        .arg("--checkpoint")
        .arg(run.path("checkpoints/step-000001"))
        .args(["--format", "comfyui", "--out"])
        .arg(&file);
    succeed(&mut export);
    let metadata = seg4diff::model::weights::header(&file).expect("header").metadata;
    assert_eq!(metadata["modelspec.architecture"], "stable-diffusion-3-medium/lora");
}

/// Without tokenizers, what to name is said.
#[test]
fn tokenizers_that_are_nowhere_are_asked_for() {
    let model = Model::smoke();
    std::fs::remove_dir_all(model.path("tokenizer_2")).expect("remove");
    let said = draw(&model.whole(), &model.config()).expect_err("no tokenizer");
    assert!(said.contains("tokenizer_2/ as model.files.config") && said.lines().count() == 1, "{said}");
}

/// Of FLUX.1: dev and schnell, each with the schedule of its own, T5 and CLIP-L in transformers' names.
#[test]
fn flux_in_one_file_draws_the_picture_of_its_folder() {
    for variant in ["dev", "schnell"] {
        let model = Model::of("tests/fixtures/flux/dev");
        folder_copy::copy(Path::new(&format!("tests/fixtures/flux/{variant}")), model.folder.path());
        let tokens = ["--max-sequence-length".to_string(), "40".to_string()];
        let wanted = draw(model.folder.path(), &tokens).expect("folder");
        let transformer = flux_transformer(&model.part("transformer"));
        let ae = vae(&model.part("vae"));
        let alone = model.write("flux1.safetensors", &[("", &transformer)]);
        let parts = [
            model.config(),
            tokens.clone(),
            file("vae", &model.write("ae.safetensors", &[("", &ae)])),
            file("clip_l", &model.path("text_encoder/model.safetensors")),
            file("t5", &model.path("text_encoder_2/model.safetensors")),
        ];
        assert!(draw(&alone, &parts.concat()).expect("parts") == wanted, "{variant}");
        let whole = model.write(
            "all_in_one.safetensors",
            &[
                (TRANSFORMER, &transformer),
                ("vae.", &ae),
                ("text_encoders.clip_l.transformer.", &model.part("text_encoder")),
                ("text_encoders.t5xxl.transformer.", &model.part("text_encoder_2")),
            ],
        );
        let found = draw(&whole, &[&model.config()[..], &tokens].concat()).expect("one file");
        assert!(found == wanted, "{variant}");
        let files = ModelFiles::open(&whole.display().to_string()).expect("one file");
        let encoders = files.text_encoders().expect("encoders");
        assert_eq!(encoders, [TextEncoderKind::ClipL, TextEncoderKind::T5]);
    }
}

/// FLUX.2-klein, whose autoencoder packs its latents, and Qwen3 in transformers' names or llama.cpp's.
#[test]
fn flux2_in_one_file_draws_the_picture_of_its_folder() {
    let model = Model::of("tests/fixtures/flux2/klein");
    let tokens = ["--max-sequence-length".to_string(), "80".to_string()];
    let wanted = draw(model.folder.path(), &tokens).expect("folder");
    let alone = model.write("flux-2-klein.safetensors", &[("", &flux2_transformer(&model.part("transformer")))]);
    let mut autoencoder = vae(&model.part("vae"));
    for (from, to) in [("quant_conv", "encoder.quant_conv"), ("post_quant_conv", "decoder.post_quant_conv")] {
        for parameter in ["weight", "bias"] {
            let tensor = autoencoder.remove(&format!("{from}.{parameter}")).expect("a convolution");
            autoencoder.insert(format!("{to}.{parameter}"), tensor);
        }
    }
    autoencoder.remove("bn.num_batches_tracked");
    let autoencoder = model.write("flux2-vae.safetensors", &[("", &autoencoder)]);
    let of_llama_cpp = |name: &String| {
        let names = [
            ("model.layers.", "blk."),
            ("model.embed_tokens", "token_embd"),
            ("model.norm", "output_norm"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("self_attn.", "attn_"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
        ];
        names.into_iter().fold(name.clone(), |name, (from, to)| name.replace(from, to))
    };
    let encoder = model.part("text_encoder");
    let renamed = encoder.iter().map(|(name, tensor)| (of_llama_cpp(name), tensor.clone())).collect();
    let renamed = model.write("renamed.safetensors", &[("", &renamed)]);
    for encoder in [model.path("text_encoder/model.safetensors"), renamed] {
        let parts = [model.config(), tokens.clone(), file("vae", &autoencoder), file("qwen3", &encoder)];
        assert!(draw(&alone, &parts.concat()).expect("one file") == wanted, "{}", encoder.display());
    }
}
