//! The demo's scenes: equal bytes for equal seeds, and captions and labels that match the pictures.
use seg4diff::data::codec::rle::RunLengths;
use seg4diff::data::{Classes, LabelMap};
use seg4diff::demo::{SceneOptions, Split, class_names, write_missing};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

const TRAIN: SceneOptions = SceneOptions { seed: 3, split: Split::Train, size: 64 };

fn written(count: u64, options: SceneOptions) -> (tempfile::TempDir, BTreeMap<String, Vec<u8>>) {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("scenes");
    write_missing(&out, count, options, |_| {}).expect("scenes");
    let mut files = BTreeMap::new();
    collect(&out, &out, &mut files);
    (folder, files)
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => collect(root, &path, files),
            false => {
                let name = path.strip_prefix(root).expect("inside").display().to_string();
                files.insert(name, std::fs::read(&path).expect("a file"));
            }
        }
    }
}

fn json(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice(bytes).expect("JSON")
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let (_keep, all) = written(12, TRAIN);
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let (_keep, again) = one.install(|| written(12, TRAIN));
    assert_eq!(all, again);
    let (_keep, other) = written(12, SceneOptions { seed: 4, ..TRAIN });
    assert_ne!(all["captions.json"], other["captions.json"]);
    // A scene does not depend on the number of scenes.
    let (_keep, fewer) = written(5, TRAIN);
    assert!(fewer.iter().filter(|(name, _)| name.starts_with("images/")).all(|(name, bytes)| all[name] == *bytes));
}

#[test]
fn shards_images_masks_and_captions_tell_the_same() {
    let (folder, files) = written(30, TRAIN);
    let classes = Classes::read(&folder.path().join("scenes/classes.json")).expect("classes");
    let names: Vec<&str> = classes.iter().map(|(_, name)| name).collect();
    assert_eq!(names, class_names());
    let captions = json(&files["captions.json"]);
    let mut shard = tar::Archive::new(files["shards/scenes_000000.tar"].as_slice());
    let mut members = BTreeMap::new();
    for member in shard.entries().expect("a tar file") {
        let mut member = member.expect("a member");
        let name = member.path().expect("a name").display().to_string();
        let mut bytes = vec![];
        member.read_to_end(&mut bytes).expect("bytes");
        members.insert(name, bytes);
    }
    assert_eq!(members.len(), 60);
    for (key, caption) in captions.as_object().expect("an object") {
        assert_eq!(members[&format!("{key}.jpg")], files[&format!("images/{key}.jpg")]);
        let map = LabelMap::decode(&files[&format!("labels/{key}.png")]).expect("a label map");
        let caption: Vec<&str> = caption.as_str().expect("text").split([' ', ',']).collect();
        let annotations = json(&members[&format!("{key}.json")]);
        assert_eq!(
            (annotations["image"]["width"].as_u64(), annotations["image"]["height"].as_u64()),
            (Some(64), Some(64))
        );
        let mut covered = 0;
        for annotation in annotations["annotations"].as_array().expect("a list") {
            let name = annotation["category"].as_str().expect("a name");
            let label = names.iter().position(|known| *known == name).expect("a class") as u32;
            let counts = annotation["segmentation"]["counts"].as_str().expect("text");
            let runs = RunLengths::from_text(64, 64, counts).expect("run-lengths");
            let area = (0..64 * 64).filter(|i| map.get(i % 64, i / 64) == label).count() as u64;
            assert_eq!((runs.area(), annotation["area"].as_u64()), (area, Some(area)), "{key} {name}");
            covered += area;
            assert!(label >= 20 && name == "night" || caption.contains(&name), "{caption:?} lacks {name}");
        }
        assert_eq!(covered, 64 * 64);
    }
}

/// The validation style shares no sprite with the others, so its scenes differ although everything else is equal.
#[test]
fn validation_has_a_style_of_its_own() {
    let (_keep, train) = written(8, TRAIN);
    let (_keep, val) = written(8, SceneOptions { split: Split::Val, ..TRAIN });
    assert!(val.keys().any(|name| name.starts_with("images/val_3_")));
    assert!(train.keys().all(|name| !name.contains("val")));
}

#[test]
fn what_is_there_is_never_overwritten() {
    let (folder, _) = written(3, TRAIN);
    let out = folder.path().join("scenes");
    write_missing(&out, 3, TRAIN, |_| panic!("they are there")).expect("the same scenes");
    let problem = write_missing(&out, 4, TRAIN, |_| {}).expect_err("refused").to_string();
    assert!(problem.contains("other scenes"), "{problem}");
    assert!(std::fs::read_dir(folder.path()).expect("a folder").count() == 1, "leftovers");
    let problem = write_missing(folder.path(), 3, TRAIN, |_| {}).expect_err("refused").to_string();
    assert!(problem.contains("not empty"), "{problem}");
}
