//! `evaluate fid` and `evaluate generation` as commands, and the config section that the second reads.
mod fake_model;
#[path = "fixtures/generation/mod.rs"]
mod fixture;

use fixture::{inception_tensors, picture, write_classifier, write_inception};
use image::RgbImage;
use seg4diff::config::{
    AttentionForm, BLUR, BestBy, EvalConfig, MapHeads, MapNormalize, RunConfig, SegmentationProtocol,
};
use seg4diff::eval::generation::moments::Gaussian;
use seg4diff::eval::generation::npz;
use seg4diff::eval::segmentation::SegmentationOptions;
use seg4diff::sample::image::{read_rgb8, write_png};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

struct World {
    folder: tempfile::TempDir,
}

impl World {
    /// Folders `real` of 12 pictures of several sizes and `made` of 9, and a classifier like the demo's in `features`.
    fn new() -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        for (folder, count) in [("real", 12), ("made", 9)] {
            for index in 0..count {
                let (width, height) = [(48, 48), (64, 30), (20, 50)][index % 3];
                write_png(
                    &world.path(&format!("{folder}/{index}.png")),
                    &picture(&format!("{folder}{index}"), width, height),
                )
                .unwrap();
            }
        }
        write_classifier(&world.path("features"));
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, line: &str) -> Output {
        let command = env!("CARGO_BIN_EXE_seg4diff");
        let output = Command::new(command).args(line.split_whitespace()).current_dir(&self.folder).output();
        output.unwrap()
    }

    /// The JSON written by a command.
    fn scores(&self, line: &str) -> Value {
        let output = self.run(&format!("{line} --json scores.json"));
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&std::fs::read(self.path("scores.json")).unwrap()).unwrap()
    }

    /// The error of a command that fails with this status.
    fn error(&self, line: &str, status: i32) -> String {
        let output = self.run(line);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{line}: {stderr}");
        assert_eq!(stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{line}: {stderr}");
        stderr
    }
}

fn number(scores: &Value, key: &str) -> f64 {
    scores[key].as_f64().unwrap_or_else(|| panic!("{key} in {scores}"))
}

fn keys(scores: &Value) -> Vec<&str> {
    scores.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn folders_are_compared_whatever_the_batch_and_the_threads() {
    let world = World::new();
    let line = "evaluate fid --real real --generated made --features features";
    let scores = world.scores(line);
    assert_eq!(keys(&scores), ["fd_demo", "images"]);
    assert_eq!(number(&scores, "images"), 9.0);
    assert!(number(&scores, "fd_demo") > 0.01, "{scores}");
    for batch in [1, 5] {
        let other = world.scores(&format!("{line} --batch {batch}"));
        let off = number(&other, "fd_demo") / number(&scores, "fd_demo") - 1.0;
        assert!(off.abs() < 1e-5, "{other}, {scores}");
    }
    let itself = world.scores("evaluate fid --real made --generated made --features features");
    assert!(number(&itself, "fd_demo") < 1e-9, "{itself}");
    // 9 images against 16 features.
    let stderr = String::from_utf8(world.run(line).stderr).unwrap();
    assert!(stderr.contains("9 generated images are too few for features of length 16"), "{stderr}");
    assert!(stderr.contains("12 real images are too few"), "{stderr}");
    let one_thread = Command::new(env!("CARGO_BIN_EXE_seg4diff"))
        .args(line.split_whitespace())
        .args(["--json", "one.json"])
        .env("RAYON_NUM_THREADS", "1")
        .current_dir(&world.folder)
        .output()
        .unwrap();
    assert!(one_thread.status.success());
    let one_thread: Value = serde_json::from_slice(&std::fs::read(world.path("one.json")).unwrap()).unwrap();
    assert_eq!(one_thread, scores, "not the same numbers on one thread");
}

#[test]
fn statistics_stand_for_a_folder() {
    let world = World::new();
    write_inception(world.folder.path(), &inception_tensors());
    let line = "--generated made --inception inception.safetensors";
    let scores = world.scores(&format!("evaluate fid --real real {line} --save-real real.npz"));
    assert_eq!(keys(&scores), ["fid", "images", "kid"]);
    let again = world.scores(&format!("evaluate fid --real real.npz {line}"));
    // A statistics file does not hold the features themselves.
    assert_eq!(keys(&again), ["fid", "images"]);
    assert_eq!(again["fid"], scores["fid"]);
    let both = world.scores("evaluate fid --real real.npz --generated real.npz --inception inception.safetensors");
    assert_eq!(keys(&both), ["fid"]);
    assert!(number(&both, "fid") < 1e-9 * number(&scores, "fid"), "{both}");
    let mixed = world.error(&format!("evaluate fid --real real.npz {line} --features features"), 2);
    assert!(mixed.contains("real.npz: a .npz has Inception's features"), "{mixed}");
    let damaged = Gaussian { mean: vec![0.0; 2048], covariance: vec![-1.0; 2048 * 2048] };
    npz::write(&world.path("damaged.npz"), &damaged).unwrap();
    for line in [format!("--real damaged.npz {line}"), line.replace("made", "damaged.npz") + " --real real"] {
        let damaged = world.error(&format!("evaluate fid {line} --json none.json"), 1);
        assert!(damaged.contains("damaged.npz: sigma has negative eigenvalues"), "{damaged}");
        assert!(!world.path("none.json").exists());
    }
    std::fs::copy(fixture::path("deflated.npz"), world.path("short.npz")).unwrap();
    let short = world.error(&format!("evaluate fid --real short.npz {line}"), 1);
    assert!(short.contains("short.npz: features of length 6, expected 2048"), "{short}");
}

#[test]
fn what_cannot_be_compared_gets_one_clear_error() {
    let world = World::new();
    let line = |real: &str| format!("evaluate fid --real {real} --generated made --features features");
    std::fs::create_dir(world.path("empty")).unwrap();
    assert!(world.error(&line("empty"), 1).contains("empty: there is no picture (jpg, jpeg,"));
    assert!(world.error(&line("nowhere"), 1).contains("nowhere: No such file"));
    std::fs::create_dir(world.path("single")).unwrap();
    std::fs::copy(world.path("real/0.png"), world.path("single/0.png")).unwrap();
    assert!(world.error(&line("single"), 1).contains("2 images at least, there are 1"));
    std::fs::write(world.path("real/5.png"), "no picture").unwrap();
    assert!(world.error(&line("real"), 1).contains("5.png: no readable image"));
    assert!(world.error("evaluate fid --real made --generated made", 2).contains("--inception"));
    std::fs::write(world.path("features/config.json"), "{}").unwrap();
    assert!(world.error(&line("made"), 1).contains("config.json"));
}

/// A config that draws with the smoke run's model, small enough for a test.
fn config(world: &World, more: &str) -> String {
    std::fs::write(
        world.path("captions.json"),
        r#"{"b": "a red circle", "a": "a blue square", "c": "a green triangle on the left"}"#,
    )
    .unwrap();
    let text = format!(
        "output = \"run\"\n[model]\npath = \"{ROOT}/checkpoints/smoke-base\"\ndtype = \"f32\"\nexpert_layer = 1\n\
         [data]\nsource = [\"nowhere.tar\"]\nresolution = 64\n\
         [eval]\nimages = \"real\"\ncaptions = \"captions.json\"\nfeatures = \"features\"\ngeneration_images = 5\n\
         steps = 3\nseed = 7\n{more}"
    );
    std::fs::write(world.path("c.toml"), text).unwrap();
    "evaluate generation --config c.toml --set device=cpu".into()
}

/// Largest difference of two pictures, of 255.
fn difference(a: &RgbImage, b: &RgbImage) -> u8 {
    assert_eq!(a.dimensions(), b.dimensions());
    a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

fn drawn(folder: &Path) -> Vec<RgbImage> {
    (0..5).map(|index| read_rgb8(&folder.join(format!("{index:06}.png"))).unwrap()).collect()
}

#[test]
fn images_are_those_of_generate_whatever_the_batch_and_scored_as_folders_are() {
    let world = World::new();
    let line = config(&world, "batch = 2\n");
    let scores = world.scores(&format!("{line} --out drawn"));
    assert_eq!(keys(&scores), ["fd_demo", "images"]);
    assert_eq!(number(&scores, "images"), 5.0);
    let images = drawn(&world.path("drawn"));
    assert!(!world.path("drawn/000005.png").exists());

    // Captions by key, cycling.
    let command = Command::new(env!("CARGO_BIN_EXE_seg4diff"))
        .args(["generate", "--model", &format!("{ROOT}/checkpoints/smoke-base"), "--device", "cpu", "--prompt"])
        .args(["a blue square", "a red circle", "a green triangle on the left", "a blue square", "a red circle"])
        .args("--size 64 --steps 3 --guidance 7 --seed 7 --max-sequence-length 77 --out prompts".split(' '))
        .current_dir(&world.folder)
        .output()
        .unwrap();
    assert!(command.status.success(), "{}", String::from_utf8_lossy(&command.stderr));
    for (index, (a, b)) in images.iter().zip(drawn(&world.path("prompts"))).enumerate() {
        assert!(difference(a, &b) <= 1, "image {index}");
        assert!(index == 0 || difference(a, &images[0]) > 1, "image {index} is image 0");
    }

    let folders = world.scores("evaluate fid --real real --generated drawn --features features --device cpu");
    let off = number(&folders, "fd_demo") / number(&scores, "fd_demo") - 1.0;
    assert!(off.abs() < 1e-5, "{folders}, {scores}");
    let whole = world.scores(&format!("{line} --set eval.batch=5 --out whole"));
    for (a, b) in images.iter().zip(drawn(&world.path("whole"))) {
        assert!(difference(a, &b) <= 1);
    }
    assert!((number(&whole, "fd_demo") / number(&scores, "fd_demo") - 1.0).abs() < 1e-3, "{whole}, {scores}");
    assert_eq!(world.scores(&line), scores, "not the same again");
    assert!(world.scores(&format!("{line} --set eval.seed=8")) != scores, "the seed has no effect");
    let mixed = world.error(&format!("{line} --set eval.seed=8 --out drawn"), 1);
    assert!(mixed.contains("drawn: its images were drawn with another seed (7, now 8)"), "{mixed}");
    assert_eq!(drawn(&world.path("drawn")), images);
    world.scores(&format!("{line} --set eval.generation_images=2 --out drawn"));
    let captions = std::fs::read_to_string(world.path("drawn/captions.json")).unwrap();
    assert!(captions.contains("000004"), "{captions}");
}

#[test]
fn a_config_without_anything_to_draw_is_refused() {
    let world = World::new();
    let line = config(&world, "");
    let nothing =
        world.error(&format!("{line} --set eval.generation_images=0 --set eval.labels=l --set eval.classes=c"), 2);
    assert!(nothing.contains("c.toml: nothing is to be drawn"), "{nothing}");
    // Training shards need not exist; the model and the files of [eval] must.
    let missing =
        world.error(&format!("{line} --set eval.images=nowhere --set eval.inception=i --set model.path=m"), 2);
    for file in ["model.path: m/", "eval.images: nowhere: is missing", "eval.inception: i: is missing"] {
        assert!(missing.contains(file), "{file} in {missing}");
    }
    assert!(!missing.contains("nowhere.tar"), "{missing}");
    std::fs::write(world.path("captions.json"), "{}").unwrap();
    assert!(world.error(&line, 1).contains("captions.json: there is no caption"));
}

const SMALLEST: &str = "output = \"runs/x\"\n[model]\npath = \"m\"\n[data]\nsource = [\"a.tar\"]\nresolution = 512\n";

fn parse(text: &str) -> seg4diff::Result<RunConfig> {
    RunConfig::parse(&format!("{SMALLEST}{text}"), Path::new("c.toml"), &[])
}

#[test]
fn the_section_has_defaults_and_is_written_back() {
    assert_eq!(parse("").unwrap().eval, None);
    let config = parse("[eval]\nimages = \"i\"\ncaptions = \"c\"\nfeatures = \"f\"\n").unwrap();
    let expected = EvalConfig {
        images: "i".into(),
        real: None,
        labels: None,
        classes: None,
        captions: Some("c".into()),
        segmentation_images: 0,
        protocol: SegmentationProtocol::Present,
        layers: vec![9],
        heads: MapHeads::Mean,
        attention: AttentionForm::Softmax,
        normalize: MapNormalize::None,
        size: 512,
        flow_images: 0,
        analysis_images: 0,
        generation_images: 500,
        steps: 28,
        guidance: None,
        perturb_scale: 0.0,
        perturb_layer: 9,
        perturb_sigma: BLUR,
        every: 0,
        every_images: 32,
        every_samples: 4,
        keep_pictures: 50,
        best_by: BestBy::HeldOutFlow,
        batch: None,
        seed: 0,
        inception: None,
        features: Some("f".into()),
        before: true,
        compare_without_masks: false,
    };
    assert_eq!(config.eval.as_ref(), Some(&expected));
    // Map settings survive writing and reading; by default they are the experts'.
    let maps = "layers = [8, 2]\nheads = 3\nattention = \"softmax_text\"\nnormalize = \"both\"\n";
    let section = "[eval]\nimages = \"i\"\nlabels = \"l\"\nclasses = \"c\"\n";
    let config = parse(&format!("{section}{maps}")).unwrap();
    for config in [&config, &RunConfig::parse(&config.to_toml(), Path::new("c.toml"), &[]).unwrap()] {
        let maps = SegmentationOptions::of(config.eval.as_ref().unwrap(), None).maps;
        assert_eq!((maps.layers, maps.heads), (vec![2, 8], MapHeads::One(3)));
        assert_eq!((maps.attention, maps.normalize), (AttentionForm::SoftmaxText, MapNormalize::Both));
    }
    let experts = RunConfig::parse(
        &format!("{SMALLEST}{section}"),
        Path::new("c.toml"),
        &["model.expert_layers=[4,7]".to_string()],
    );
    assert_eq!(experts.unwrap().eval.unwrap().layers, [4, 7]);
    // Segmentation alone draws nothing.
    let segmentation = parse("[eval]\nimages = \"i\"\nlabels = \"l\"\nclasses = \"c\"\nprotocol = \"all\"\n").unwrap();
    let eval = segmentation.eval.clone().unwrap();
    assert_eq!((eval.generation_images, eval.protocol), (0, SegmentationProtocol::All));
    for config in [config, segmentation] {
        assert_eq!(RunConfig::parse(&config.to_toml(), Path::new("again.toml"), &[]).unwrap(), config);
    }
}

#[test]
fn a_section_that_makes_no_sense_is_refused_with_its_place() {
    let start = SMALLEST.lines().count() + 1;
    for (text, expected) in [
        ("", "c.toml: eval.images is missing"),
        ("images = \"\"", "2:1: eval.images: must not be empty"),
        ("images = \"i\"", "2:1: eval.images: nothing would be measured"),
        ("images = \"i\"\nlabels = \"l\"", "3:1: eval.classes: is missing; segmentation is measured with both"),
        ("images = \"i\"\nclasses = \"l\"", "3:1: eval.labels: is missing"),
        ("images = \"i\"\nfeatures = \"f\"", "3:1: eval.captions: is missing; images are drawn from captions"),
        ("images = \"i\"\ncaptions = \"c\"\ngeneration_images = 9", "4:1: eval.generation_images: needs a network"),
        (
            "images = \"i\"\ncaptions = \"c\"\nfeatures = \"f\"\ngeneration_images = 1",
            "5:1: eval.generation_images: of one",
        ),
        ("images = \"i\"\nprotocol = \"some\"", "3:1: eval.protocol: expected \"present\" or \"all\""),
        ("images = \"i\"\nlayers = [3, 3]", "3:1: eval.layers: 3 is listed twice"),
        ("images = \"i\"\nlayers = []", "3:1: eval.layers: must not be empty"),
        ("images = \"i\"\nheads = \"min\"", "3:1: eval.heads: expected \"mean\", \"max\" or the number of a head"),
        (
            "images = \"i\"\nattention = \"raw\"",
            "3:1: eval.attention: expected \"logits\", \"softmax\" or \"softmax_text\"",
        ),
        (
            "images = \"i\"\nnormalize = true",
            "3:1: eval.normalize: expected \"none\", \"before\", \"after\" or \"both\"",
        ),
        ("images = \"i\"\nsteps = 0", "3:1: eval.steps: must be from 1 to 1000, is 0"),
        ("images = \"i\"\nbatch = 0", "3:1: eval.batch: must be from 1 to 4096, is 0"),
        ("images = \"i\"\nguidence = 3", "3:1: unknown key eval.guidence; the nearest is eval.guidance"),
        ("images = \"i\"\nbefore = 1", "3:1: eval.before: expected true or false"),
    ] {
        let message = parse(&format!("[eval]\n{text}\n")).unwrap_err().to_string();
        let expected = match expected.split_once(':').map(|(line, rest)| (line.parse::<usize>(), rest)) {
            Some((Ok(line), rest)) => format!("c.toml:{}:{rest}", start + line - 1),
            _ => expected.to_string(),
        };
        assert!(message.contains(&expected), "{expected} in {message}");
    }
    let loss = "[loss]\nfocal_weight = 0.0\ndice_weight = 0.0\n";
    let section = "[eval]\nimages = \"i\"\nlabels = \"l\"\nclasses = \"c\"\ncompare_without_masks = true\n";
    let message = parse(&format!("{loss}{section}")).unwrap_err().to_string();
    assert!(message.contains("eval.compare_without_masks: the run has no mask loss itself"), "{message}");
    let message = parse(&format!("[loss]\nflow_weight = 0.0\n{section}")).unwrap_err().to_string();
    assert!(
        message.contains("eval.compare_without_masks: without the mask loss nothing would be trained"),
        "{message}"
    );
}

#[test]
fn the_check_names_every_missing_file_of_the_section() {
    let world = World::new();
    fake_model::fake_model(&world.path("m"));
    std::fs::write(world.path("a.tar"), "").unwrap();
    let text = "[eval]\nimages = \"a.tar\"\nlabels = \"l\"\nclasses = \"k\"\ncaptions = \"c\"\ninception = \"i\"\n\
                features = \"f\"\nsize = 100\n";
    std::fs::write(world.path("c.toml"), format!("{SMALLEST}{text}")).unwrap();
    let message = world.error("train --check --config c.toml", 2);
    for part in [
        "eval.images: a.tar is not a folder",
        "eval.labels: l: is missing",
        "eval.classes: k: is missing",
        "eval.captions: c: is missing",
        "eval.inception: i: is missing",
        "eval.features: f: is missing",
        "eval.size: 100 is not a multiple of 16",
    ] {
        assert!(message.contains(part), "{part} in {message}");
    }
}
