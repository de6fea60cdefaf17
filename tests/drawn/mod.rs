//! What tests of a family from end to end share: its fixtures, pictures, runs, comparisons, and a model cut into shards.
use crate::outcome::Outcome;
use crate::smoke_run::{Run, run, succeed};
use candle_core::{DType, Tensor};
use seg4diff::demo::{self, SceneOptions, Split};
use seg4diff::model::adapters::formats::Origin;
use seg4diff::model::families;
use seg4diff::model::weights::files::ModelFiles;
use seg4diff::model::weights::{read_all, write};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A folder of fixtures that its gen.py made.
pub struct Fixtures(pub &'static str);

impl Fixtures {
    pub fn path(&self, name: &str) -> PathBuf {
        Path::new(self.0).join(name)
    }

    pub fn settings(&self) -> Value {
        let text = std::fs::read_to_string(self.path("expected.json")).expect("expected.json");
        serde_json::from_str(&text).expect("JSON")
    }

    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        read_all(&self.path("expected.safetensors")).expect("tensors")
    }

    /// The pictures that `generate` draws of the fixture's prompts and noise in so many `steps`, one after the other, of 255.
    pub fn pictures(&self, model: &Path, steps: &Value, more: &[&str]) -> Vec<u8> {
        let (settings, out) = (self.settings(), tempfile::tempdir().expect("folder"));
        let mut command = seg4diff(&["generate", "--device", "cpu", "--model"]);
        command.arg(model);
        for prompt in settings["prompts"].as_array().expect("prompts") {
            command.args(["--prompt", prompt.as_str().expect("text")]);
        }
        for (flag, value) in
            [("--size", &settings["size"]), ("--steps", steps), ("--max-sequence-length", &settings["tokens"])]
        {
            command.args([flag, &value.to_string()]);
        }
        command.arg("--latents").arg(self.path("latents.safetensors")).arg("--out").arg(out.path()).args(more);
        succeed(&mut command);
        let picture = |name: &str| image::open(out.path().join(name)).expect("picture").to_rgb8().into_raw();
        [picture("000000.png"), picture("000001.png")].concat()
    }

    /// How far pictures are, on the mean, from those that diffusers drew.
    pub fn off(&self, pictures: &[u8], name: &str) -> f64 {
        let wanted = self.tensors()[name].flatten_all().and_then(|tensor| tensor.to_vec1::<u8>()).expect("pixels");
        difference(pictures, &wanted)
    }
}

/// The program, in the folder of this package.
pub fn seg4diff(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args);
    command
}

pub fn open(folder: &Path) -> ModelFiles {
    ModelFiles::open(&folder.display().to_string()).expect("model")
}

/// An adapter's origin, of which its base model is known.
pub fn origin_of(model: &Path) -> Origin {
    let files = open(model);
    let release = families::of(&files).and_then(|family| family.config(&files)).expect("config").release;
    Origin { release, ..Origin::default() }
}

pub fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).and_then(|t| t.flatten_all()?.to_vec1()).expect("values")
}

/// The largest difference, over the largest value.
pub fn relative(got: &Tensor, wanted: &Tensor) -> f32 {
    assert_eq!(got.dims(), wanted.dims());
    let (got, wanted) = (values(got), values(wanted));
    let largest = wanted.iter().fold(0f32, |m, v| m.max(v.abs()));
    got.iter().zip(&wanted).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

/// The mean difference of pixels, of 255.
pub fn difference(found: &[u8], wanted: &[u8]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    found.iter().zip(wanted).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / found.len() as f64
}

/// Cuts a transformer's weights into three shards with an index.
pub fn shard(model: &Path) {
    let transformer = model.join("transformer");
    let whole = transformer.join("diffusion_pytorch_model.safetensors");
    let mut shards = [BTreeMap::new(), BTreeMap::new(), BTreeMap::new()];
    let mut weight_map = BTreeMap::new();
    let name = |shard: usize| format!("diffusion_pytorch_model-0000{}-of-00003.safetensors", shard + 1);
    for (index, (tensor, values)) in read_all(&whole).expect("weights").into_iter().enumerate() {
        weight_map.insert(tensor.clone(), name(index % 3));
        shards[index % 3].insert(tensor, values);
    }
    for (shard, tensors) in shards.iter().enumerate() {
        write(&transformer.join(name(shard)), tensors, &BTreeMap::new()).expect("shard");
    }
    let index = json!({"metadata": {}, "weight_map": weight_map}).to_string();
    std::fs::write(transformer.join("diffusion_pytorch_model.safetensors.index.json"), index).expect("index");
    std::fs::remove_file(whole).expect("remove");
}

/// With `[eval]` a run of these settings is measured on the way: segmentation by its experts, and drawn pictures.
pub fn check_measured(settings: &[&str]) {
    let folder = tempfile::tempdir().expect("folder");
    let data = folder.path().join("scenes");
    demo::write_missing(&data, 4, SceneOptions { seed: 3, split: Split::Val, size: 64 }, |_| ()).expect("scenes");
    let at = |name: &str| data.join(name).display().to_string();
    let eval = [
        format!("eval.images={}", at("images")),
        format!("eval.labels={}", at("labels")),
        format!("eval.classes={}", at("classes.json")),
        format!("eval.captions={}", at("captions.json")),
        "eval.features=checkpoints/demo-features".into(),
        "eval.generation_images=4".into(),
        "eval.size=64".into(),
        "eval.steps=2".into(),
        "train.steps=2".into(),
    ];
    let settings: Vec<&str> = settings.iter().copied().chain(eval.iter().map(String::as_str)).collect();
    let said = Run::new(&settings).finish(&[]);
    for done in ["segmented 4/4 base", "drawn 4/4 base", "segmented 4/4 after", "drawn 4/4 after"] {
        assert!(said.contains(done), "{done}: {said}");
    }
}

/// Steps of [`check_bytes`]' runs.
const STEPS: u64 = 6;

/// Stopped and resumed, from a cache, with blocks recomputed and on one thread: the bytes of an undisturbed run.
pub fn check_bytes(settings: &[&str]) {
    let more = [format!("train.steps={STEPS}"), "checkpoint.every=2".into(), "train.batch=2".into()];
    let settings: Vec<&str> = settings.iter().copied().chain(more.iter().map(String::as_str)).collect();
    let whole = Run::new(&settings);
    whole.finish(&[]);
    let whole = Outcome::of(&whole, STEPS);
    assert!(whole.metrics.iter().all(|line| line["flow"].as_f64() > Some(0.0) && line["dice"].as_f64() > Some(0.0)));

    let stopped = Run::new(&settings);
    let mut child = stopped.train(&[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("train");
    while child.try_wait().expect("status").is_none() && !stopped.checkpoint(2, "state.json").exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("kill");
    child.wait().expect("status");
    stopped.finish(&["--resume"]);
    whole.check(&Outcome::of(&stopped, STEPS), "resumed");

    let recomputed = Run::new(&settings);
    recomputed.finish(&["--set", "train.gradient_checkpointing=true"]);
    whole.check(&Outcome::of(&recomputed, STEPS), "recomputed");

    let one_thread = Run::new(&settings);
    succeed(one_thread.train(&[]).env("RAYON_NUM_THREADS", "1"));
    whole.check(&Outcome::of(&one_thread, STEPS), "one thread");

    let folder = tempfile::tempdir().expect("folder");
    let cache = folder.path().join("cache");
    let mut command = seg4diff(&["prepare", "cache", "--config", "configs/smoke.toml", "--out"]);
    command.arg(&cache);
    for setting in &settings {
        command.args(["--set", setting]);
    }
    succeed(&mut command);
    let cached = Run::new(&settings);
    let said = cached.finish(&["--set", &format!("data.cache={}", cache.display())]);
    whole.check(&Outcome::of(&cached, STEPS), &said);
}

/// What `--check` says of settings before anything is loaded.
pub fn check_refused(settings: &[&str], refused: &[(&str, &str)]) {
    for (setting, said) in refused {
        let (output, text) = run(&mut Run::new(settings).train(&["--check", "--set", setting]));
        assert!(!output.status.success() && text.contains(said), "{setting}: {text}");
    }
}

pub const LABELLED: [&str; 6] = [
    "--images",
    "tests/fixtures/segmentation/images",
    "--labels",
    "tests/fixtures/segmentation/labels",
    "--classes",
    "tests/fixtures/segmentation/classes.json",
];

/// `probe` shows maps of so many `tokens` of these `layers`, and `analyze` looks at `blocks` blocks, of which the last has
/// text queries, too. `common` are a model's arguments, for images of 64 pixels.
pub fn check_attention(common: &[&str], layers: &str, tokens: usize, blocks: usize) {
    let out = tempfile::tempdir().expect("folder");
    let image = "tests/fixtures/segmentation/images/b/street.png";
    let mut command =
        seg4diff(&["probe", "--image", image, "--prompt", "a photo of a cat", "--layer", layers, "--out"]);
    succeed(command.arg(out.path().join("probe")).args(common));
    let attention = read_all(&out.path().join("probe/attention.safetensors")).expect("attention");
    let dims: Vec<_> = attention.values().map(Tensor::dims).collect();
    assert!(dims.contains(&&[tokens, 4, 4][..]), "{dims:?}");

    let mut command = seg4diff(&["analyze", "--blur", "1", "--steps", "8"]);
    command.args(common).args(LABELLED).arg("--sheet").arg(out.path().join("sheet.png"));
    succeed(command.arg("--json").arg(out.path().join("a.json")));
    let text = std::fs::read_to_string(out.path().join("a.json")).expect("scores");
    let found: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(found["blocks"].as_array().map(Vec::len), Some(blocks), "{text}");
    assert!(found["blocks"][blocks - 1]["text_to_image"].as_f64().is_some_and(|share| share > 0.0), "{text}");
}
