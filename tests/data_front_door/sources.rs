//! Several sources: settings of their own, repeats and weights, the same order on every run and across a resume.
use crate::world::{config, outcome, write};
use seg4diff::config::{DataConfig, DataFormat, MaskForm, RunConfig, SourceConfig};
use seg4diff::data::{Cursor, Loader};
use std::collections::BTreeMap;
use std::path::Path;

fn source(path: &Path) -> SourceConfig {
    SourceConfig {
        path: path.to_str().expect("path").into(),
        repeats: 1,
        weight: 1.0,
        format: None,
        captions: None,
        labels: None,
        panoptic: None,
        instances: None,
        classes: None,
        masks: None,
        palette: None,
        ignore: None,
    }
}

/// `count` folders of ten pictures each, `a0` to `a9`, `b0` to `b9`, …
fn folders(root: &Path, names: &[&str]) -> DataConfig {
    for name in names {
        let files: Vec<String> =
            (0..10).map(|number| format!("{name}/{name}{number}.jpg {name}/{name}{number}.txt")).collect();
        write(root, &files.join(" "));
    }
    let mut config = config(root);
    config.source = vec![];
    config.sources = names.iter().map(|name| source(&root.join(name))).collect();
    config
}

/// The keys of each of the first epochs.
fn epochs(config: &DataConfig, count: u64) -> Vec<Vec<String>> {
    let mut loader = Loader::new(config, 7, None, false).expect("loader");
    let mut epochs = vec![Vec::new(); count as usize];
    loop {
        let batch = loader.next_batch(1).expect("sample");
        let Some(epoch) = epochs.get_mut(batch.epoch as usize) else { return epochs };
        epoch.push(batch.samples[0].key.clone());
    }
}

fn counts(keys: &[String]) -> BTreeMap<char, usize> {
    let mut counts = BTreeMap::new();
    keys.iter().filter_map(|key| key.chars().next()).for_each(|first| *counts.entry(first).or_default() += 1);
    counts
}

#[test]
fn repeats_and_weights_say_how_often_samples_come() {
    let folder = tempfile::tempdir().expect("folder");
    let mut config = folders(folder.path(), &["a", "b", "c"]);
    (config.sources[0].repeats, config.sources[1].weight, config.sources[2].weight) = (3, 0.5, 1.5);
    config.shuffle_buffer = 1000;
    let epochs = epochs(&config, 40);
    for epoch in &epochs {
        assert_eq!(counts(epoch)[&'a'], 30);
        let of = |name: &str| epoch.iter().filter(|key| *key == name).count();
        assert!((0..10).all(|number| of(&format!("a{number}")) == 3 && of(&format!("b{number}")) <= 1));
        assert!((0..10).all(|number| (1..=2).contains(&of(&format!("c{number}")))));
    }
    let all = counts(&epochs.concat());
    assert!((160..=240).contains(&all[&'b']) && (560..=640).contains(&all[&'c']), "{all:?}");
    assert!(epochs.iter().any(|epoch| counts(epoch).get(&'b') != counts(&epochs[0]).get(&'b')));
}

#[test]
fn a_mixture_resumes_at_every_sample() {
    let folder = tempfile::tempdir().expect("folder");
    let mut config = folders(folder.path(), &["a", "b"]);
    (config.sources[0].repeats, config.sources[1].weight) = (2, 0.5);
    (config.shuffle_buffer, config.flip) = (7, true);
    let stream = |start: Option<&Cursor>, count: usize| {
        let mut loader = Loader::new(&config, 7, start, false).expect("loader");
        let next = |_| loader.next_batch(1).map(|batch| (batch.samples[0].clone(), batch.cursor)).expect("sample");
        (0..count).map(next).collect::<Vec<_>>()
    };
    let all = stream(None, 60);
    for (at, (_, cursor)) in all.iter().enumerate().take(50) {
        assert!(stream(Some(cursor), 6) == all[at + 1..][..6], "after {at}");
    }
}

#[test]
fn each_source_has_its_own_captions_and_format() {
    let folder = tempfile::tempdir().expect("folder");
    write(
        folder.path(),
        "cats/1.jpg dogs/1.jpg cats.json={\"1\":\"a_cat\"} dogs.json={\"1\":\"a_dog\"} coco/x.jpg labels/x.png \
         classes.json={\"5\":\"sky\",\"7\":\"sea\"}",
    );
    let path = |name: &str| folder.path().join(name);
    let mut config = config(folder.path());
    config.source = vec![];
    config.sources = vec![
        SourceConfig { captions: Some(path("cats.json")), ..source(&path("cats")) },
        SourceConfig { captions: Some(path("dogs.json")), ..source(&path("dogs")) },
        SourceConfig {
            format: Some(DataFormat::Coco),
            labels: Some(path("labels")),
            classes: Some(path("classes.json")),
            ..source(&path("coco"))
        },
    ];
    let (said, samples) = outcome(&config).expect("samples");
    assert_eq!(samples, "1[a_cat]0 1[a_dog]0 x[sky_sea]2");
    assert_eq!(said.lines().count(), 3, "{said}");
    assert!(said.contains("1 photograph, 1 label map"), "{said}");

    // beside the entries of data.source, which take the section's own captions
    config.source = vec![path("cats").to_str().expect("path").to_owned()];
    config.sources.truncate(1);
    let error = outcome(&config).expect_err("no captions of their own");
    assert!(error.contains("1 photograph without a caption: 1.jpg"), "{error}");
}

#[test]
fn each_source_has_its_own_kind_of_masks() {
    let folder = tempfile::tempdir().expect("folder");
    write(
        folder.path(),
        "grey/1.jpg grey/1.txt grey/1.png other/1.jpg other/1.txt other/1.png coco/x.jpg instances.json={}",
    );
    let path = |name: &str| folder.path().join(name);
    let instances = r#"{"images": [{"id": 1, "file_name": "x.jpg", "width": 16, "height": 16}],
        "categories": [{"id": 3, "name": "cow"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0, "area": 64, "bbox": [0, 0, 8, 8],
                         "segmentation": [[0, 0, 8, 0, 8, 8, 0, 8]]}]}"#;
    std::fs::write(path("instances.json"), instances).expect("instances");
    let mut config = config(folder.path());
    config.source = vec![];
    config.sources = vec![
        // of the labels 5 and 7
        SourceConfig { masks: Some(MaskForm::Labels), ignore: Some(7), ..source(&path("grey")) },
        // neither of which is half as bright as white
        SourceConfig { masks: Some(MaskForm::Binary), ..source(&path("other")) },
        SourceConfig {
            format: Some(DataFormat::Coco),
            instances: Some(path("instances.json")),
            ..source(&path("coco"))
        },
    ];
    let (_, samples) = outcome(&config).expect("samples");
    assert_eq!(samples, "1[1]1 1[1]0 x[cow]1");
}

#[test]
fn what_does_not_suit_a_source_is_said_with_its_number() {
    for (tables, parts) in [
        ("path = \"a\"\nlabels = \"l\"", &["item 1: labels is for format = \"coco\" only"][..]),
        ("path = \"a\"\npalette = \"voc\"", &["item 1: palette is for format = \"coco\" or \"folder\" only"]),
        ("path = \"a\"\nmasks = \"binary\"", &["item 1: masks is for format = \"folder\" only"]),
        (
            "path = \"a\"\n[[data.sources]]\npath = \"b\"\nformat = \"coco\"",
            &["item 2: labels is missing", "item 2: classes"],
        ),
        (
            "path = \"a\"\nformat = \"coco\"\nlabels = \"l\"\ninstances = \"i.json\"",
            &["item 1: labels and instances are two kinds of masks; choose one"],
        ),
        (
            "path = \"a\"\nformat = \"coco\"\ninstances = \"i.json\"\npalette = \"voc\"",
            &["item 1: palette is for label maps of colours"],
        ),
        (
            "path = \"a\"\nformat = \"folder\"\nmasks = \"binary\"\nclasses = \"c.json\"",
            &["item 1: masks = \"binary\" has no labels"],
        ),
        ("path = \"a\"\nformat = \"coco\"\ninstances = \"i.json\"\nignore = 3", &["item 1: ignore is for label maps"]),
        ("path = \"a\"\nignore = \"x\"", &["ignore: ", "\"x\""]),
        ("path = \"a\"\npalete = \"voc\"", &["unknown key palete; the nearest is palette"]),
    ] {
        let text = format!("output = \"o\"\n[model]\npath = \"m\"\n[data]\n[[data.sources]]\n{tables}\n");
        let problem = RunConfig::parse(&text, Path::new("c.toml"), &[]).expect_err("wrong").to_string();
        assert!(parts.iter().all(|part| problem.contains(part)), "{tables}\n{problem}");
    }
}
