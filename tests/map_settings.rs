//! Maps of several blocks, of chosen heads, with other softmaxes, scalings and a score head equal PyTorch's.
//!
//! The reference values of diffusers and PyTorch are in fixtures/map_settings, with the script that made them; the
//! images are those of fixtures/segmentation, the model is checkpoints/smoke-base.
use candle_core::{Device, Tensor};
use seg4diff::config::{AttentionForm, Choice, DeviceChoice, MapNormalize, SegmentationProtocol};
use seg4diff::distributed::SingleProcess;
use seg4diff::eval::EvaluatedModel;
use seg4diff::eval::analysis::analyse;
use seg4diff::eval::maps::MapSettings;
use seg4diff::eval::score_head::{ScoreHeadForm, TrainedScoreHead};
use seg4diff::eval::segmentation::{LabelledFolder, SegmentationOptions, Segmenter, evaluate, evaluate_unsupervised};
use seg4diff::eval::segmentation::{UnsupervisedOptions, evaluate_referring};
use seg4diff::eval::turns::Turns;
use seg4diff::model::pipeline::{Pipeline, PipelineOptions};
use seg4diff::model::weights::files::ModelFiles;
use seg4diff::model::weights::{read_all, write};
use seg4diff::ops::enlarge;
use seg4diff::sample::scheduler::Scheduler;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Deserialize)]
struct Expected {
    runs: Vec<Run>,
    without_words: Vec<Run>,
    blocks: Vec<Value>,
}

#[derive(Deserialize)]
struct Run {
    #[serde(default)]
    protocol: String,
    layers: Vec<usize>,
    heads: String,
    attention: String,
    #[serde(default)]
    normalize: String,
    score_head: Option<String>,
    #[serde(default)]
    scores: Value,
}

impl Run {
    fn settings(&self) -> MapSettings {
        let form = |name: &String| match name.as_str() {
            "residual" => ScoreHeadForm::Residual,
            _ => ScoreHeadForm::Released,
        };
        let head = |name| TrainedScoreHead::read(&score_head(), form(name), &Device::Cpu).unwrap();
        MapSettings {
            heads: self.heads.parse().unwrap(),
            attention: AttentionForm::from_name(&self.attention).unwrap(),
            normalize: MapNormalize::from_name(&self.normalize).unwrap_or(MapNormalize::None),
            score_head: self.score_head.as_ref().map(head),
            ..MapSettings::of_layers(&self.layers)
        }
    }

    fn flags(&self) -> Vec<String> {
        let layers: Vec<String> = self.layers.iter().rev().map(usize::to_string).collect();
        let flags = [("layer", layers.join(",")), ("heads", self.heads.clone()), ("attention", self.attention.clone())];
        let mut flags: Vec<String> = flags.into_iter().flat_map(|(name, value)| [format!("--{name}"), value]).collect();
        if let Some(form) = &self.score_head {
            flags.extend(["--score-head".into(), score_head().display().to_string()]);
            flags.extend(["--score-head-form".into(), form.clone()]);
        }
        flags
    }
}

fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// In a checkpoint's format.
fn score_head() -> PathBuf {
    fixtures("train_step/score_head.safetensors")
}

fn smoke_base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints/smoke-base")
}

fn expected() -> (Expected, BTreeMap<String, Tensor>) {
    let text = std::fs::read_to_string(fixtures("map_settings/expected.json")).unwrap();
    (serde_json::from_str(&text).unwrap(), read_all(&fixtures("map_settings/expected.safetensors")).unwrap())
}

fn load() -> (Pipeline, Scheduler) {
    let files = ModelFiles::open(smoke_base().to_str().unwrap()).unwrap();
    let options = PipelineOptions {
        text_encoders: vec![Choice::from_name("clip_l").unwrap(), Choice::from_name("clip_g").unwrap()],
        max_sequence_length: 77,
        dtype: candle_core::DType::F32,
        device: DeviceChoice::Cpu.open().unwrap(),
        depth: None,
    };
    (Pipeline::load(&files, &options).unwrap(), Scheduler::open(&files).unwrap())
}

fn data() -> LabelledFolder {
    let at = |name: &str| fixtures("segmentation").join(name);
    LabelledFolder::open(&at("images"), &at("labels"), &at("classes.json"), &[255]).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest difference, relative to the largest value.
fn error(found: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(found.len(), wanted.len());
    let greatest = wanted.iter().fold(0f32, |most, value| most.max(value.abs()));
    found.iter().zip(wanted).map(|(f, w)| (f - w).abs() / greatest).fold(0f32, f32::max)
}

/// Every pixel has the class that won in PyTorch, or one that ties with it up to rounding.
fn assert_predicted(found: &[u16], wanted: &Tensor, maps: &Tensor, classes: &[u16], what: &str) {
    let (height, width) = wanted.dims2().unwrap();
    let wanted = wanted.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let large = values(&enlarge(maps, height, width).unwrap());
    let greatest = large.iter().fold(0f32, |most, value| most.max(value.abs()));
    let at = |class: u16, pixel: usize| {
        large[classes.iter().position(|c| *c == class).unwrap() * height * width + pixel] / greatest
    };
    for (pixel, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
        let wanted = u16::from(*wanted);
        let as_great = *found == wanted || (at(*found, pixel) - at(wanted, pixel)).abs() < 1e-5;
        assert!(as_great, "{what}, pixel {pixel}: {found}, expected {wanted}");
    }
}

#[test]
fn class_maps_and_predictions_are_those_of_pytorch() {
    let (expected, tensors) = expected();
    let (pipeline, scheduler) = load();
    let model = EvaluatedModel { pipeline: &pipeline, scheduler: &scheduler, turns: &Turns::new(&SingleProcess) };
    let data = data();
    assert_eq!(expected.runs.len(), 12);
    for (number, run) in expected.runs.iter().enumerate() {
        let options = SegmentationOptions {
            maps: run.settings(),
            protocol: SegmentationProtocol::from_name(&run.protocol).unwrap(),
            noise: Some(tensors["noise"].clone()),
            batch: [1, 3, 32][number % 3],
            ..SegmentationOptions::new(0, 64)
        };
        let mut seen = 0;
        let scores = evaluate(model, &data, &options, &mut |result| {
            let Some(wanted) = tensors.get(&format!("run_{number}_maps_{}", result.index)) else { return Ok(()) };
            let what = format!("run {number}, {}", result.image.key);
            let error = error(&result.maps.values, &values(wanted));
            assert!(error < 1e-5, "{what}: {error:e}");
            let predicted = &tensors[&format!("run_{number}_predicted_{}", result.index)];
            assert_predicted(&result.predicted.classes, predicted, wanted, &result.maps.classes, &what);
            seen += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!((scores.images, seen), (7, if run.protocol == "all" { 7 } else { 6 }));
        let wanted = run.scores["miou"].as_f64().unwrap();
        assert!((scores.miou - wanted).abs() < 1e-4, "run {number}: mIoU {}, expected {wanted}", scores.miou);
    }
}

#[test]
fn maps_without_words_have_the_settings_too() {
    let (expected, tensors) = expected();
    let (pipeline, scheduler) = load();
    let image = data().read(1).unwrap();
    for (number, run) in expected.without_words.iter().enumerate() {
        let noise = Some(tensors["noise"].clone());
        let options = SegmentationOptions { maps: run.settings(), noise, ..SegmentationOptions::new(0, 64) };
        let mut segmenter = Segmenter::new(&pipeline, &scheduler, &options).unwrap();
        let found = segmenter.token_maps(&[(1, &image.image)]).unwrap();
        let error = error(&found[0], &values(&tensors[&format!("without_words_{number}")]));
        assert!(error < 1e-5, "{number}: {error:e}");
    }
}

/// Evaluation by phrases and without words uses the settings too: other settings give other scores.
#[test]
fn every_evaluation_heeds_the_settings() {
    let (pipeline, scheduler) = load();
    let model = EvaluatedModel { pipeline: &pipeline, scheduler: &scheduler, turns: &Turns::new(&SingleProcess) };
    let data = data();
    let of = |maps: MapSettings| SegmentationOptions { maps, ..SegmentationOptions::new(0, 64) };
    let usual = of(MapSettings::of_layers(&[1]));
    let other = of(MapSettings { attention: AttentionForm::Logits, ..MapSettings::of_layers(&[0, 1, 2]) });
    let phrases = [fixtures("segmentation/phrases.jsonl"), fixtures("segmentation/images")];
    let referring = |options: &SegmentationOptions| {
        evaluate_referring(model, (&phrases[0], &phrases[1]), options, |_| {}).unwrap().unwrap()
    };
    assert_ne!(referring(&usual), referring(&other));
    let merging = UnsupervisedOptions { thresholds: vec![0.003], power: 1.0, prompt: None };
    let unsupervised = |options: &SegmentationOptions| {
        evaluate_unsupervised(model, &data, options, &merging, &mut |_| Ok(())).unwrap()
    };
    assert_ne!(unsupervised(&usual), unsupervised(&other));
}

#[test]
fn every_block_is_analysed_with_the_settings() {
    let (expected, tensors) = expected();
    let (pipeline, scheduler) = load();
    let model = EvaluatedModel { pipeline: &pipeline, scheduler: &scheduler, turns: &Turns::new(&SingleProcess) };
    let maps = MapSettings {
        heads: "max".parse().unwrap(),
        attention: AttentionForm::SoftmaxText,
        normalize: MapNormalize::Both,
        ..MapSettings::of_layers(&[])
    };
    let noise = Some(tensors["noise"].clone());
    let options = SegmentationOptions { maps, noise, batch: 3, ..SegmentationOptions::new(0, 64) };
    let found = analyse(model, &data(), &options, |_, _| {}).unwrap();
    for (block, wanted) in found.blocks.iter().zip(&expected.blocks) {
        for (key, value) in [("miou", block.miou), ("pixel_accuracy", block.pixel_accuracy)] {
            let wanted = wanted[key].as_f64().unwrap();
            assert!((value - wanted).abs() < 1e-4, "block {} {key}: {value}, expected {wanted}", block.block);
        }
    }
}

/// Equal parameters under the names of a checkpoint and of the released code; and files without score head.
#[test]
fn a_score_head_is_read_from_checkpoints_and_released_files() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("step-000010");
    std::fs::create_dir(&checkpoint).unwrap();
    std::fs::copy(score_head(), checkpoint.join("adapter.safetensors")).unwrap();
    let maps = Tensor::arange(0f32, 2.0 * 12.0 * 77.0, &Device::Cpu).unwrap().reshape((2, 12, 77)).unwrap();
    let maps = (maps / 100.0).unwrap().sin().unwrap();
    let read = |path: &Path, form| TrainedScoreHead::read(path, form, &Device::Cpu);
    for form in [ScoreHeadForm::Residual, ScoreHeadForm::Released] {
        let paths = [score_head(), checkpoint.clone(), fixtures("map_settings/lora_weights.safetensors")];
        let [first, others @ ..] = paths.map(|path| values(&read(&path, form).unwrap().apply(&maps, (3, 4)).unwrap()));
        assert!(others.iter().all(|other| *other == first) && first.iter().all(|value| value.is_finite()));
    }
    let form = ScoreHeadForm::Residual;
    let problem = read(&fixtures("adapters/folded.safetensors"), form).unwrap_err().to_string();
    assert!(problem.contains("folded.safetensors") && problem.contains("no score head"), "{problem}");
    let cut: BTreeMap<String, Tensor> = read_all(&score_head())
        .unwrap()
        .into_iter()
        .map(
            |(name, tensor)| {
                if name.ends_with("2.weight") { (name, tensor.narrow(0, 0, 5).unwrap()) } else { (name, tensor) }
            },
        )
        .collect();
    let file = folder.path().join("cut.safetensors");
    write(&file, &cut, &BTreeMap::new()).unwrap();
    let problem = read(&file, form).unwrap_err().to_string();
    assert!(problem.contains("score_head.2.weight has shape [5, 64, 3, 3]"), "{problem}");
}

fn run(arguments: &[String]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_seg4diff")).args(arguments).output().unwrap()
}

/// The commands take the settings as flags, blocks in any order, and name what a model lacks.
#[test]
fn commands_take_the_settings() {
    let (expected, tensors) = expected();
    let work = tempfile::tempdir().unwrap();
    let noise = work.path().join("noise.safetensors");
    write(&noise, &BTreeMap::from([("noise".to_string(), tensors["noise"].clone())]), &BTreeMap::new()).unwrap();
    let at = |name: &str| fixtures("segmentation").join(name).display().to_string();
    let json = work.path().join("scores.json");
    let common = |command: &[&str]| {
        let mut all: Vec<String> = command.iter().map(|word| word.to_string()).collect();
        all.extend(["--model", smoke_base().to_str().unwrap(), "--device", "cpu", "--size", "64"].map(str::to_string));
        all.extend(["--noise".into(), noise.display().to_string()]);
        all
    };
    let labelled =
        || ["--images", &at("images"), "--labels", &at("labels"), "--classes", &at("classes.json")].map(str::to_string);
    for run_number in [6, 9, 10] {
        let wanted = &expected.runs[run_number];
        let mut arguments = common(&["evaluate", "segmentation", "--protocol", &wanted.protocol]);
        arguments.extend(labelled());
        arguments.extend(wanted.flags());
        arguments.extend(["--normalize".into(), wanted.normalize.clone(), "--json".into(), json.display().to_string()]);
        let output = run(&arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let found: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        let (found, wanted) = (found["miou"].as_f64().unwrap(), wanted.scores["miou"].as_f64().unwrap());
        assert!((found - wanted).abs() < 1e-4, "run {run_number}: {found}, expected {wanted}");
    }
    let wrong: [(&[&str], &str); 6] = [
        (&["--layer", "1,3"], "--layer 3: the model has 3 blocks"),
        (&["--layer", "1,1"], "block 1 is named twice"),
        (&["--layer", "1,x"], "several separated by commas"),
        (&["--layer", "1", "--heads", "2"], "head 2: the model's blocks have 2 heads"),
        (&["--layer", "1", "--heads", "most"], "expected mean, max or the number of a head"),
        (&["--layer", "1", "--attention", "softmax-text"], "the nearest is \"softmax_text\""),
    ];
    for (flags, problem) in wrong {
        let mut arguments = common(&["evaluate", "segmentation"]);
        arguments.extend(labelled());
        arguments.extend(flags.iter().map(|flag| flag.to_string()));
        let output = run(&arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && stderr.contains(problem), "{flags:?}: {stderr}");
    }
}
