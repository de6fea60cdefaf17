//! `evaluate segmentation` gives the numbers of diffusers, PyTorch and NumPy.
//!
//! The reference values are in fixtures/segmentation, with the script that made them; the model is
//! checkpoints/smoke-base.
use candle_core::{Device, Tensor};
use seg4diff::config::{Choice, DeviceChoice, MapHeads, SegmentationProtocol};
use seg4diff::data::codec::labels::{LabelMap, encode_labels, label_colour};
use seg4diff::distributed::SingleProcess;
use seg4diff::eval::EvaluatedModel;
use seg4diff::eval::analysis::analyse;
use seg4diff::eval::maps::MapSettings;
use seg4diff::eval::segmentation::{
    Accumulator, Class, ClassMaps, LabelledFolder, NO_CLASS, NoiseLevel, SegmentationMap, SegmentationOptions,
    SegmentationScores, Segmenter, UnsupervisedOptions, Vocabulary, evaluate, evaluate_referring,
    evaluate_unsupervised,
};
use seg4diff::eval::turns::Turns;
use seg4diff::model::pipeline::{Pipeline, PipelineOptions};
use seg4diff::model::weights::files::ModelFiles;
use seg4diff::model::weights::{read_all, write};
use seg4diff::ops::{enlarge, enlarged_argmax};
use seg4diff::sample::scheduler::Scheduler;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/segmentation")
}

fn smoke_base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints/smoke-base")
}

#[derive(Deserialize)]
struct Expected {
    accumulation: Vec<Value>,
    enlargement: Vec<(usize, usize)>,
    keys: Vec<String>,
    noise_level: (f32, f32),
    prompts: Vec<String>,
    spans: Vec<Vec<(usize, usize)>>,
    runs: Vec<Run>,
    analysis: Vec<Value>,
    unsupervised: Vec<Unsupervised>,
    referring: Value,
}

#[derive(Deserialize)]
struct Unsupervised {
    layer: usize,
    power: f64,
    thresholds: Vec<f64>,
    scores: Vec<Value>,
}

#[derive(Deserialize)]
struct Run {
    layer: usize,
    size: usize,
    protocol: String,
    sigma: Option<f64>,
    ignore: Vec<u32>,
    scores: Value,
}

fn expected() -> (Expected, BTreeMap<String, Tensor>) {
    let text = std::fs::read_to_string(folder().join("expected.json")).unwrap();
    (serde_json::from_str(&text).unwrap(), read_all(&folder().join("expected.safetensors")).unwrap())
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
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

fn data(ignore: &[u32]) -> LabelledFolder {
    let at = |name: &str| folder().join(name);
    LabelledFolder::open(&at("images"), &at("labels"), &at("classes.json"), ignore).unwrap()
}

/// The JSON scores equal NumPy's.
fn assert_scores(found: &SegmentationScores, expected: &Value, limit: f64) {
    let found = serde_json::to_value(found).unwrap();
    assert_eq!(found["images"], expected["images"]);
    let names = |scores: &Value| scores["per_class"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(expected));
    let close = |what: &str, found: &Value, expected: &Value| {
        let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
        assert!((found - expected).abs() <= limit, "{what}: {found}, expected {expected}");
    };
    close("mIoU", &found["miou"], &expected["miou"]);
    close("pixel accuracy", &found["pixel_accuracy"], &expected["pixel_accuracy"]);
    for name in names(expected) {
        close(&name, &found["per_class"][&name], &expected["per_class"][&name]);
    }
}

#[test]
fn accumulation_is_that_of_numpy() {
    let (expected, tensors) = expected();
    for (case, scores) in expected.accumulation.iter().enumerate() {
        let maps = |name: &str| -> Vec<SegmentationMap> {
            let images: Vec<Vec<Vec<u8>>> = tensors[&format!("accumulation_{case}_{name}")].to_vec3().unwrap();
            let of = |image: &Vec<Vec<u8>>| SegmentationMap {
                width: image[0].len(),
                height: image.len(),
                classes: image.concat().iter().map(|&c| if c == 255 { NO_CLASS } else { u16::from(c) }).collect(),
            };
            images.iter().map(of).collect()
        };
        let classes = scores["classes"].as_u64().unwrap() as usize;
        let mut accumulator = Accumulator::new(classes);
        for (truth, predicted) in maps("truth").iter().zip(&maps("predicted")) {
            accumulator.add(truth, predicted);
        }
        let named = (0..classes as u32).map(|label| Class { label, name: format!("class {label}") });
        let found = accumulator.scores(&named.collect::<Vec<_>>()).unwrap();
        assert_eq!(found.per_class.len(), classes, "absent classes are there, without a score");
        assert_scores(&found, scores, 1e-15);
    }
}

#[test]
fn a_pixel_without_a_prediction_is_missed_and_nothing_counts_without_ground_truth() {
    let map = |classes: &[u16]| SegmentationMap { width: classes.len(), height: 1, classes: classes.to_vec() };
    let named = [(0, "a"), (1, "b"), (2, "c")].map(|(label, name)| Class { label, name: name.into() });
    let mut accumulator = Accumulator::new(3);
    assert!(accumulator.scores(&named).is_err());
    accumulator.add(&map(&[NO_CLASS, NO_CLASS]), &map(&[0, NO_CLASS]));
    assert!(accumulator.scores(&named).is_err());
    accumulator.add(&map(&[0, 0, 1, NO_CLASS]), &map(&[0, NO_CLASS, 0, 2]));
    let scores = accumulator.scores(&named).unwrap();
    let per_class = [("a", Some(1.0 / 3.0)), ("b", Some(0.0)), ("c", None)];
    assert_eq!(scores.per_class, per_class.map(|(name, iou)| (name.to_string(), iou)));
    assert_eq!((scores.miou, scores.pixel_accuracy, scores.images), (1.0 / 6.0, 1.0 / 3.0, 2));
}

#[test]
fn enlargement_is_that_of_torch() {
    let (expected, tensors) = expected();
    for (case, &(height, width)) in expected.enlargement.iter().enumerate() {
        let maps = &tensors[&format!("enlargement_{case}_maps")];
        let large = &tensors[&format!("enlargement_{case}_large")];
        let (found, wanted) = (values(&enlarge(maps, height, width).unwrap()), values(large));
        let error = found.iter().zip(&wanted).map(|(f, w)| (f - w).abs()).fold(0f32, f32::max);
        assert!(error < 1e-6, "case {case}: {error:e}");

        let (count, h, w) = maps.dims3().unwrap();
        let winners = enlarged_argmax(&values(maps), (h, w), (height, width));
        assert_eq!(winners.len(), height * width);
        for (pixel, winner) in winners.into_iter().enumerate() {
            let at = |map: usize| wanted[map * height * width + pixel];
            let greatest = (0..count).map(at).fold(0f32, f32::max);
            assert!(at(usize::from(winner)) > greatest - 1e-6, "case {case}, pixel {pixel}: {winner}");
        }
    }
}

#[test]
fn the_first_of_equal_maps_wins() {
    let maps = ClassMaps { grid: (2, 2), classes: vec![4, 1, 9], values: [[0.1; 4], [0.7; 4], [0.7; 4]].concat() };
    assert_eq!(maps.predict(5, 3).classes, [1; 15]);
    let none = ClassMaps { grid: (2, 2), classes: vec![], values: vec![] };
    assert_eq!(none.predict(2, 3), SegmentationMap { width: 2, height: 3, classes: vec![NO_CLASS; 6] });
}

#[test]
fn names_are_spread_over_prompts_whole_and_in_order() {
    let (expected, _) = expected();
    let ((pipeline, _), data) = (load(), data(&[255]));
    let vocabulary = Vocabulary::new(&pipeline.text_encoders, &data).unwrap();
    let prompts = vocabulary.all();
    let texts: Vec<&str> = prompts.iter().map(|prompt| prompt.text.as_str()).collect();
    assert_eq!(texts, expected.prompts);
    let spans: Vec<Vec<Range<usize>>> = expected.spans.iter().map(|s| s.iter().map(|&(a, b)| a..b).collect()).collect();
    let found: Vec<Vec<Range<usize>>> =
        prompts.iter().map(|prompt| prompt.places.iter().map(|(_, place)| place.clone()).collect()).collect();
    assert_eq!(found, spans);
    let order: Vec<u16> = prompts.iter().flat_map(|prompt| prompt.places.iter().map(|(class, _)| *class)).collect();
    assert_eq!(order, (0..20).collect::<Vec<u16>>());
    assert!(vocabulary.prompts(&[]).is_empty());
    let [prompt] = vocabulary.prompts(&[4, 0, 17]).try_into().unwrap();
    assert_eq!(prompt.text, "black bar red circle orange");
    assert_eq!(prompt.places, [(4, 1..3), (0, 3..5), (17, 5..6)]);
}

/// Every image's class maps and the scores of the whole data set, at several blocks, sizes and noise levels.
#[test]
fn the_protocol_is_that_of_diffusers() {
    let (expected, tensors) = expected();
    let (pipeline, scheduler) = load();
    let model = EvaluatedModel { pipeline: &pipeline, scheduler: &scheduler, turns: &Turns::new(&SingleProcess) };
    let schedule = scheduler.set_timesteps(28, 1);
    assert_eq!((schedule.sigmas[20], schedule.timesteps[20]), expected.noise_level);
    for (number, run) in expected.runs.iter().enumerate() {
        let data = data(&run.ignore);
        let mut options = SegmentationOptions {
            protocol: SegmentationProtocol::from_name(&run.protocol).unwrap(),
            noise: Some(tensors[&format!("run_{number}_noise")].clone()),
            ..SegmentationOptions::new(run.layer, run.size)
        };
        if let Some(sigma) = run.sigma {
            options.noise_level = NoiseLevel::Sigma(sigma);
        }
        for batch in [1, 3, 32] {
            options.batch = batch;
            let mut keys = vec![];
            let scores = evaluate(model, &data, &options, &mut |result| {
                keys.push(result.image.key.clone());
                assert_eq!((result.index + 1, result.maps.grid), (keys.len(), (run.size / 16, run.size / 16)));
                let Some(wanted) = tensors.get(&format!("run_{number}_maps_{}", result.index)) else {
                    assert!(result.prompts.is_empty() && result.predicted.classes.iter().all(|c| *c == NO_CLASS));
                    return Ok(());
                };
                let wanted = values(wanted);
                assert_eq!(result.maps.values.len(), wanted.len());
                let greatest = wanted.iter().copied().fold(0f32, f32::max);
                let errors = result.maps.values.iter().zip(&wanted).map(|(f, w)| (f - w).abs() / greatest);
                let error = errors.fold(0f32, f32::max);
                assert!(error < 1e-4, "run {number}, batch {batch}, {}: {error:e}", result.image.key);
                Ok(())
            })
            .unwrap();
            assert_eq!(keys, expected.keys);
            assert_scores(&scores, &run.scores, 1e-4);
        }
    }
}

/// Merged maps without words, the matching of segments with classes, and the scores at several thresholds.
#[test]
fn segments_without_words_are_those_of_numpy_and_scipy() {
    let (expected, tensors) = expected();
    let (pipeline, scheduler) = load();
    let model = EvaluatedModel { pipeline: &pipeline, scheduler: &scheduler, turns: &Turns::new(&SingleProcess) };
    let [images, labels] = ["images/b", "labels/b"].map(|name| folder().join(name));
    let data = LabelledFolder::open(&images, &labels, &folder().join("classes.json"), &[255]).unwrap();
    for run in &expected.unsupervised {
        let merging = UnsupervisedOptions { thresholds: run.thresholds.clone(), power: run.power, prompt: None };
        let noise = Some(tensors["blocks_noise"].clone());
        let usual = SegmentationOptions::new(run.layer, 64);
        let options = SegmentationOptions { noise, batch: 3, ..usual };
        let mut segments = vec![0; run.thresholds.len()];
        let scores = evaluate_unsupervised(model, &data, &options, &merging, &mut |result| {
            segments[result.threshold] += result.segments;
            assert_eq!((result.key, result.index), ("street", 0));
            Ok(())
        })
        .unwrap();
        for ((scores, wanted), segments) in scores.iter().zip(&run.scores).zip(segments) {
            assert_scores(scores, wanted, 1e-4);
            assert_eq!(segments as f64 / scores.images as f64, wanted["segments"].as_f64().unwrap());
        }

        // A learnt prompt replaces the empty one.
        let told = |text: &str| {
            let prompt = Some(pipeline.text_encoders.encode(&[text]).unwrap());
            let merging = UnsupervisedOptions { prompt, ..merging.clone() };
            let scores = evaluate_unsupervised(model, &data, &options, &merging, &mut |_| Ok(()));
            scores.unwrap().iter().map(|scores| scores.pixel_accuracy).collect::<Vec<_>>()
        };
        let found: Vec<f64> = scores.iter().map(|scores| scores.pixel_accuracy).collect();
        assert_eq!(told(""), found);
        assert_ne!(told("a street with a red bus and many people"), found);
    }
}

/// Phrases segmented by their maps, at the threshold that is best on the other half.
#[test]
fn phrases_are_found_as_in_diffusers_and_numpy() {
    let (expected, tensors) = expected();
    let (pipeline, scheduler) = load();
    let model = EvaluatedModel { pipeline: &pipeline, scheduler: &scheduler, turns: &Turns::new(&SingleProcess) };
    let noise = Some(tensors["blocks_noise"].clone());
    let wanted = &expected.referring["scores"];
    let layer = expected.referring["layer"].as_u64().unwrap() as usize;
    let usual = SegmentationOptions { noise, ..SegmentationOptions::new(layer, 64) };
    for batch in [1, 2, 9] {
        let options = SegmentationOptions { batch, ..usual.clone() };
        let (mut done, phrases, images) = (0, folder().join("phrases.jsonl"), folder().join("images"));
        let files = (phrases.as_path(), images.as_path());
        let scores = evaluate_referring(model, files, &options, |phrases| done = phrases).unwrap().unwrap();
        assert_eq!(done, 9);
        let found = serde_json::to_value(&scores).unwrap();
        for (key, wanted) in wanted.as_object().unwrap() {
            let (value, wanted) = (found[key].as_f64().unwrap(), wanted.as_f64().unwrap());
            assert!((value - wanted).abs() < 1e-4, "batch {batch}, {key}: {value}, expected {wanted}");
        }
    }
}

/// A limit keeps all phrases of the first images, also those that come after phrases of others.
#[test]
fn phrases_of_the_first_images_are_kept_wherever_they_stand() {
    let (pipeline, scheduler) = load();
    let model = EvaluatedModel { pipeline: &pipeline, scheduler: &scheduler, turns: &Turns::new(&SingleProcess) };
    let text = std::fs::read_to_string(folder().join("phrases.jsonl")).unwrap();
    let image_of = |line: &&str| serde_json::from_str::<Value>(line).unwrap()["image"].to_string();
    let lines: Vec<&str> = text.lines().collect();
    let (first, second) = (image_of(&lines[0]), lines.iter().map(image_of).find(|name| *name != image_of(&lines[0])));
    let names = [first, second.unwrap()];
    let kept: Vec<&str> = lines.iter().filter(|line| names.contains(&image_of(line))).copied().collect();
    let scores = |lines: &[&str], limit, batch| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lines.join("\n")).unwrap();
        let options = SegmentationOptions { limit, batch, ..SegmentationOptions::new(1, 64) };
        let files = (file.path(), folder().join("images"));
        evaluate_referring(model, (files.0, &files.1), &options, |_| {}).unwrap().unwrap()
    };
    let third = lines.iter().position(|line| !names.contains(&image_of(line))).unwrap();
    assert!(lines[third..].iter().any(|line| names.contains(&image_of(line))), "some phrases come late");
    let wanted = scores(&kept, None, 1);
    for batch in [1, 2, 3, 9] {
        assert_eq!(scores(&lines, Some(2), batch), wanted, "batch {batch}");
    }
}

#[test]
fn phrases_that_are_not_as_they_should_be_are_named_by_line() {
    let (pipeline, scheduler) = load();
    let model = EvaluatedModel { pipeline: &pipeline, scheduler: &scheduler, turns: &Turns::new(&SingleProcess) };
    let mask = r#"{"size": [9, 5], "counts": [0, 45]}"#;
    let long = "sky ".repeat(76);
    let line = |image: &str, phrase: &str, mask: &str| {
        format!("{{\"image\": {image:?}, \"phrase\": {phrase:?}, \"mask\": {mask}}}\n")
    };
    let good = line("tiny.png", "a", mask);
    for (text, wanted) in [
        (String::new(), "at least two images"),
        (good.clone(), "at least two images"),
        (format!("{good}\n{{"), "line 3: "),
        (format!("{good}{}", line("tiny.png", "", mask)), "line 2: the phrase is 0 tokens"),
        (format!("{good}{}", line("tiny.png", &long, mask)), "tokens, expected 1 to 75"),
        (
            format!("{good}{}", line("tiny.png", "a", r#"{"size": [9, 5], "counts": [45]}"#)),
            "line 2: the mask is empty",
        ),
        (
            format!("{good}{}", line("tiny.png", "a", r#"{"size": [9, 5], "counts": [44]}"#)),
            "line 2: run-lengths add up",
        ),
        (
            format!("{good}{}", line("tiny.png", "a", r#"{"size": [5, 9], "counts": [0, 45]}"#)),
            "line 2: the mask is 9×5",
        ),
        (format!("{good}{}", line("gone.png", "a", mask)), "gone.png"),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        let options = SegmentationOptions::new(1, 64);
        let images = folder().join("images");
        let found = evaluate_referring(model, (file.path(), &images), &options, |_| {});
        let problem = found.unwrap_err().to_string();
        assert!(problem.contains(wanted), "{problem}");
    }
}

/// Every block's segmentation, and the attention and value norms between image and text.
#[test]
fn the_analysis_is_that_of_diffusers() {
    let (expected, tensors) = expected();
    let ((pipeline, scheduler), data) = (load(), data(&[255]));
    let model = EvaluatedModel { pipeline: &pipeline, scheduler: &scheduler, turns: &Turns::new(&SingleProcess) };
    let noise = Some(tensors["blocks_noise"].clone());
    let options = SegmentationOptions { noise, batch: 3, ..SegmentationOptions::new(0, 64) };
    let mut done = vec![];
    let found = analyse(model, &data, &options, |images, _| done.push(images)).unwrap();
    assert_eq!(done, [3, 6, 7]);
    assert_eq!((found.blocks.len(), found.expert), (3, 0));
    // 16 image tokens, 77 of CLIP, 77 zeros.
    assert_eq!((found.uniform_image_to_text, found.uniform_text_to_image), (154.0 / 170.0, 16.0 / 170.0));
    for (block, wanted) in found.blocks.iter().zip(&expected.analysis) {
        let found = serde_json::to_value(block).unwrap();
        for key in ["miou", "pixel_accuracy", "image_to_text", "text_to_image", "image_value_norm", "text_value_norm"] {
            let Some(value) = found[key].as_f64() else {
                assert_eq!((key, block.block), ("text_to_image", 2), "the last block's text is read by nothing");
                continue;
            };
            let wanted = wanted[key].as_f64().unwrap();
            assert!((value / wanted - 1.0).abs() < 1e-4, "block {} {key}: {value}, expected {wanted}", block.block);
        }
    }
    let [first, second, third] = [0, 1, 2].map(|block| found.blocks[block].miou);
    assert!((found.lead_over_median - (first - second)).abs() < 1e-12 && second > third);
    assert!((found.lead_over_next - (first - second)).abs() < 1e-12);
}

/// One pass over several blocks yields the mean of a pass for each of them, and an image's result does not depend on
/// the images beside it.
#[test]
fn blocks_are_looked_at_in_one_pass() {
    let (pipeline, scheduler) = load();
    let data = data(&[255]);
    let vocabulary = Vocabulary::new(&pipeline.text_encoders, &data).unwrap();
    let options = |layers: &[usize]| {
        let maps = MapSettings::of_layers(layers);
        SegmentationOptions { maps, batch: 2, ..SegmentationOptions::new(0, 64) }
    };
    let all = [options(&[0]), options(&[2]), options(&[2, 0])];
    let [mut first, mut last, mut both] = all.each_ref().map(|o| Segmenter::new(&pipeline, &scheduler, o).unwrap());
    let images: Vec<_> = [1, 3, 6].map(|index| (index, data.read(index).unwrap())).into();
    let numbered: Vec<_> = images.iter().map(|(index, image)| (*index, &image.image)).collect();
    let prompts = [vocabulary.all(), vocabulary.prompts(&[3, 7]), vec![]];
    let together = both.class_maps(&numbered, &prompts).unwrap();
    let separate = [&mut first, &mut last].map(|segmenter| segmenter.class_maps(&numbered, &prompts).unwrap());
    assert_eq!(together.len(), 3);
    assert_ne!(separate[0][0].values, separate[1][0].values);
    assert_eq!((&together[1].classes, &together[2].classes), (&vec![3, 7], &vec![]));
    for (place, found) in together.iter().enumerate() {
        let mean = separate[0][place].values.iter().zip(&separate[1][place].values).map(|(a, b)| (a + b) / 2.0);
        let errors = mean.zip(&found.values).map(|(a, b)| (a - b).abs() / b);
        assert!(errors.fold(0f32, f32::max) < 1e-5, "image {place}");
        let alone = both.class_maps(&numbered[place..=place], &prompts[place..=place]).unwrap();
        assert_eq!(alone[0].classes, found.classes);
        let errors = alone[0].values.iter().zip(&found.values).map(|(a, b)| (a - b).abs() / b);
        assert!(errors.fold(0f32, f32::max) < 1e-5, "image {place}");
    }
}

/// The noise of an image depends on the seed and its index alone; an error of the visitor ends the evaluation.
#[test]
fn the_seed_decides_and_a_visitor_can_stop() {
    let (pipeline, scheduler) = load();
    let model = EvaluatedModel { pipeline: &pipeline, scheduler: &scheduler, turns: &Turns::new(&SingleProcess) };
    let data = data(&[255]);
    let run = |seed, batch, limit| {
        let options = SegmentationOptions { seed, batch, limit, ..SegmentationOptions::new(1, 64) };
        let mut maps = vec![];
        let scores = evaluate(model, &data, &options, &mut |result| {
            maps.push(result.maps.values.clone());
            Ok(())
        });
        (scores.unwrap(), maps)
    };
    let (scores, maps) = run(1, 4, None);
    assert_eq!(run(1, 4, None), (scores.clone(), maps.clone()));
    let (fewer, first) = run(1, 4, Some(4));
    assert_eq!((fewer.images, first.as_slice()), (4, &maps[..4]));
    assert_ne!(run(2, 4, None).1, maps);
    let options = SegmentationOptions { batch: 2, ..SegmentationOptions::new(1, 64) };
    let mut seen = 0;
    let stopped = evaluate(model, &data, &options, &mut |_| {
        seen += 1;
        Err(seg4diff::Error::Failed("enough".into()))
    });
    assert!(matches!(stopped, Err(seg4diff::Error::Failed(text)) if text == "enough" && seen == 1));
}

#[test]
fn label_maps_are_written_as_they_are_read() {
    for labels in [vec![0u32, 1, 2, 255, 17, 200], vec![0, 256, 65535, 3, 4, 5]] {
        let png = encode_labels(3, 2, &labels).unwrap();
        let map = LabelMap::decode(&png).unwrap();
        let found: Vec<u32> = (0..6).map(|pixel| map.get(pixel % 3, pixel / 3)).collect();
        assert_eq!((map.width, map.height, found), (3, 2, labels));
    }
    assert!(encode_labels(1, 1, &[65536]).unwrap_err().contains("65535"));
    assert!(encode_labels(2, 1, &[1]).is_err());
    // The colours of PASCAL VOC: background, aeroplane, bicycle, …, tvmonitor, and the ignored border.
    let colours = [0, 1, 2, 3, 15, 20, 255].map(label_colour);
    let voc = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192]];
    assert_eq!(colours, voc);
}

/// The command: table, JSON, predictions, equal to the library's numbers.
#[test]
fn the_command_prints_and_writes_the_scores() {
    let (expected, tensors) = expected();
    let work = tempfile::tempdir().unwrap();
    for (number, run) in expected.runs.iter().enumerate() {
        let noise = BTreeMap::from([("noise".to_string(), tensors[&format!("run_{number}_noise")].clone())]);
        write(&work.path().join("noise.safetensors"), &noise, &BTreeMap::new()).unwrap();
        let ignore: Vec<String> = run.ignore.iter().map(u32::to_string).collect();
        let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
        command.args([
            "evaluate",
            "segmentation",
            "--device",
            "cpu",
            "--noise",
            "noise.safetensors",
            "--json",
            "out/s.json",
        ]);
        command.args(["--predictions", "p", "--protocol", &run.protocol, "--ignore", &ignore.join(",")]);
        command.args(["--layer", &run.layer.to_string(), "--size", &run.size.to_string()]);
        for (flag, path) in [("--model", smoke_base()), ("--images", folder().join("images"))] {
            command.arg(flag).arg(path);
        }
        command.arg("--labels").arg(folder().join("labels")).arg("--classes").arg(folder().join("classes.json"));
        if let Some(sigma) = run.sigma {
            command.args(["--sigma", &sigma.to_string()]);
        }
        let output = command.current_dir(work.path()).output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{stderr}");
        assert!(stderr.contains("image 7/7"), "{stderr}");
        let json: Value = serde_json::from_slice(&std::fs::read(work.path().join("out/s.json")).unwrap()).unwrap();
        let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["images", "miou", "per_class", "pixel_accuracy"]);
        let miou = json["miou"].as_f64().unwrap();
        assert!((miou - run.scores["miou"].as_f64().unwrap()).abs() < 1e-4);
        let total = stdout.lines().find(|line| line.starts_with("mIoU")).unwrap();
        assert_eq!(total.split_whitespace().nth(1), Some(format!("{:.2}", 100.0 * miou).as_str()), "{stdout}");
        assert!(stdout.lines().count() > json["per_class"].as_object().unwrap().len(), "{stdout}");
        // The accuracy again, from the prediction files.
        let (mut right, mut counted) = (0, 0);
        for key in &expected.keys {
            let map =
                |folder: &Path| LabelMap::decode(&std::fs::read(folder.join(format!("{key}.png"))).unwrap()).unwrap();
            let (truth, predicted) = (map(&folder().join("labels")), map(&work.path().join("p")));
            assert_eq!((truth.width, truth.height), (predicted.width, predicted.height));
            for (x, y) in (0..truth.height).flat_map(|y| (0..truth.width).map(move |x| (x, y))) {
                if !run.ignore.contains(&truth.get(x, y)) {
                    counted += 1;
                    right += u32::from(truth.get(x, y) == predicted.get(x, y));
                }
            }
        }
        assert!((f64::from(right) / f64::from(counted) - json["pixel_accuracy"].as_f64().unwrap()).abs() < 1e-12);
    }
}

#[test]
fn options_that_do_not_suit_are_usage_errors() {
    let (pipeline, scheduler) = load();
    let model = EvaluatedModel { pipeline: &pipeline, scheduler: &scheduler, turns: &Turns::new(&SingleProcess) };
    let data = data(&[255]);
    let noise = Tensor::zeros((1, 16, 4, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
    let good = || SegmentationOptions::new(1, 64);
    let second_head = MapSettings { heads: MapHeads::One(2), ..MapSettings::of_layers(&[1]) };
    for (options, expected) in [
        (SegmentationOptions { maps: MapSettings::of_layers(&[1, 3]), ..good() }, "block 3: the model has 3"),
        (SegmentationOptions { maps: MapSettings::of_layers(&[]), ..good() }, "no block"),
        (SegmentationOptions { maps: second_head, ..good() }, "head 2: the model's blocks have 2"),
        (SegmentationOptions { size: 72, ..good() }, "multiple of 16"),
        (SegmentationOptions { size: 512, ..good() }, "at most 256"),
        (SegmentationOptions { noise: Some(noise), ..good() }, "[1, 16, 8, 8]"),
        (
            SegmentationOptions { noise_level: NoiseLevel::Step { steps: 28, timestep: -29 }, ..good() },
            "-29 of a schedule of 28",
        ),
        (
            SegmentationOptions { noise_level: NoiseLevel::Step { steps: 28, timestep: 28 }, ..good() },
            "28 of a schedule of 28",
        ),
    ] {
        let error = evaluate(model, &data, &options, &mut |_| Ok(())).unwrap_err();
        assert!(matches!(&error, seg4diff::Error::Usage(text) if text.contains(expected)), "{error}");
    }
}
