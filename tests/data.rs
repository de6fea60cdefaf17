//! The data stream: equal order on any number of threads, resumable anywhere, robust against broken files.
mod data_config;

use data_config::plain;
use image::{ExtendedColorType, ImageEncoder, codecs::jpeg::JpegEncoder, codecs::png::PngEncoder};
use seg4diff::config::{Allowed, Crop, DataConfig, DataFormat};
use seg4diff::data::codec::rle::RunLengths;
use seg4diff::data::sources::captions::{Columns, first_sentences};
use seg4diff::data::{Captions, Cursor, Loader, Sample};
use std::fs;
use std::path::{Path, PathBuf};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/data");
const SHARED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/coco128");

fn config(format: DataFormat, source: &[&str]) -> DataConfig {
    DataConfig {
        caption_key_column: "image".into(),
        caption_sentences: 2,
        min_mask_area: 0.005,
        max_broken: 0.5,
        ..plain(format, source)
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A photograph whose red channel is its number, which identifies the sample.
fn photograph(number: u8, width: u32, height: u32) -> Vec<u8> {
    let pixels: Vec<u8> = (0..width * height).flat_map(|_| [number, 100, 200]).collect();
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes).write_image(&pixels, width, height, ExtendedColorType::Rgb8).unwrap();
    bytes
}

fn annotations(width: usize, height: usize, masks: &[Vec<bool>]) -> String {
    let text = |mask: &Vec<bool>| RunLengths::encode(height, width, mask).unwrap().to_text();
    let masks: Vec<serde_json::Value> = masks
        .iter()
        .map(|mask| serde_json::json!({"segmentation": {"size": [height, width], "counts": text(mask)}, "area": 1}))
        .collect();
    serde_json::json!({"image": {"image_id": 1, "width": width, "height": height, "file_name": "x.jpg"},
        "annotations": masks})
    .to_string()
}

fn left_half(width: usize, height: usize) -> Vec<bool> {
    (0..width * height).map(|pixel| pixel % width < width / 2).collect()
}

type Files = Vec<(String, Vec<u8>)>;

fn write_tar(path: &Path, files: &[(String, Vec<u8>)]) {
    let mut archive = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    archive.finish().unwrap();
}

fn sound(number: u8) -> Files {
    vec![
        (format!("./sa_{number}.jpg"), photograph(number, 20, 16)),
        (format!("./sa_{number}.json"), annotations(20, 16, &[left_half(20, 16)]).into_bytes()),
        (format!("./sa_{number}.txt"), format!("Number {number}. Second! Third?").into_bytes()),
    ]
}

/// Shards of 7, 1, 5 and 9 samples, numbered consecutively.
fn four_shards(folder: &Path) {
    let mut number = 0;
    for (shard, count) in [7, 1, 5, 9].into_iter().enumerate() {
        let files: Files = (number..number + count).flat_map(sound).collect();
        number += count;
        write_tar(&folder.join(format!("sa_{shard}.tar")), &files);
    }
}

fn take(loader: &mut Loader, count: usize) -> Vec<Sample> {
    loader.next_batch(count).unwrap().samples
}

fn keys(samples: &[Sample]) -> Vec<String> {
    samples.iter().map(|sample| sample.key.clone()).collect()
}

#[test]
fn source_order_is_kept_and_samples_are_whole() {
    let folder = tempfile::tempdir().unwrap();
    four_shards(folder.path());
    let source = folder.path().join("sa_*.tar");
    let mut loader = Loader::new(&config(DataFormat::Sa1b, &[path(&source)]), 1, None, true).unwrap();
    let batch = loader.next_batch(25).unwrap();
    let numbers: Vec<u8> = batch.samples.iter().map(|sample| sample.image[0]).collect();
    assert_eq!(numbers, (0..22).chain(0..3).collect::<Vec<u8>>());
    assert_eq!((batch.epoch, batch.cursor.epoch, batch.cursor.broken), (0, 1, 0));
    for sample in &batch.samples {
        assert_eq!(sample.key, format!("sa_{}", sample.image[0]));
        assert_eq!(sample.prompt, format!("Number {}. Second!", sample.image[0]));
        assert_eq!(sample.image.len(), 16 * 16 * 3);
        assert!(sample.classes.is_empty());
        let [mask] = sample.masks.as_slice() else { panic!("one mask") };
        // 20 wide, the window starts at 2: columns 2..10 of the left half
        assert_eq!((mask.class, mask.area()), (None, 8 * 16));
        assert!(mask.get(7, 15) && !mask.get(8, 0));
    }
    assert_eq!(loader.next_batch(1).unwrap().epoch, 1);
}

#[test]
fn order_depends_on_the_seed_alone() {
    let folder = tempfile::tempdir().unwrap();
    four_shards(folder.path());
    let mut config = config(DataFormat::Sa1b, &[path(folder.path())]);
    config.shuffle_buffer = 6;
    config.flip = true;
    config.crop = Crop::Random;
    config.caption_dropout = 0.3;
    let mut run = |seed: u64, workers: usize, sizes: &[usize]| -> Vec<Sample> {
        config.workers = workers;
        let mut loader = Loader::new(&config, seed, None, false).unwrap();
        sizes.iter().flat_map(|&size| take(&mut loader, size)).collect()
    };
    let one = run(7, 1, &[66]);
    assert!(run(7, 2, &[22, 22, 22]) == one);
    assert!(run(7, 5, &[5, 60, 1]) == one);
    assert!(keys(&run(8, 2, &[66])) != keys(&one));
    let mut epochs: Vec<Vec<String>> = one.chunks(22).map(keys).collect();
    assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
    epochs.iter_mut().for_each(|epoch| epoch.sort());
    assert!(epochs[0] == epochs[1] && epochs[1] == epochs[2]);
    epochs[0].dedup();
    assert_eq!(epochs[0].len(), 22);
    let dropped = one.iter().filter(|sample| sample.prompt.is_empty()).count();
    assert!((8..33).contains(&dropped), "{dropped} of 66");
    assert!(one.iter().all(|sample| sample.prompt.is_empty() == sample.masks.is_empty()));
}

#[test]
fn every_position_resumes_to_the_same_stream() {
    let folder = tempfile::tempdir().unwrap();
    let broken = |number: u8| (format!("sa_{number}.jpg"), b"no image".to_vec());
    for (shard, range) in [(0, 0..7), (1, 7..8), (2, 8..13)] {
        let mut files: Files = range.flat_map(sound).collect();
        files.push(broken(200 + shard));
        files.push((format!("sa_{}.json", 200 + shard), b"{}".to_vec()));
        files.push((format!("sa_{}.txt", 200 + shard), b"broken".to_vec()));
        files.push((format!("sa_{}.jpg", 210 + shard), photograph(1, 4, 4)));
        write_tar(&folder.path().join(format!("sa_{shard}.tar")), &files);
    }
    for shuffle_buffer in [1, 4, 100] {
        let mut config = config(DataFormat::Sa1b, &[path(folder.path())]);
        config.shuffle_buffer = shuffle_buffer;
        config.flip = true;
        let mut loader = Loader::new(&config, 3, None, true).unwrap();
        let stream: Vec<(Sample, Cursor)> = (0..32)
            .map(|_| {
                loader.next_batch(1).map(|batch| (batch.samples.into_iter().next().unwrap(), batch.cursor)).unwrap()
            })
            .collect();
        assert!(stream[31].1.broken >= 12 && stream[31].1.epoch == 2);
        for (position, (_, cursor)) in stream.iter().enumerate().take(30) {
            let text = serde_json::to_string(cursor).unwrap();
            assert!(text.len() < 250, "{text}");
            config.workers = 1 + position % 3;
            let mut resumed = Loader::new(&config, 3, Some(&serde_json::from_str(&text).unwrap()), true).unwrap();
            for (sample, cursor) in &stream[position + 1..] {
                let batch = resumed.next_batch(1).unwrap();
                assert!(batch.samples[0] == *sample, "after {position}: {} for {}", batch.samples[0].key, sample.key);
                assert_eq!(batch.cursor, *cursor);
            }
        }
    }
}

#[test]
fn a_position_of_other_shards_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    four_shards(folder.path());
    let config = config(DataFormat::Sa1b, &[path(folder.path())]);
    let cursor = Loader::new(&config, 3, None, true).unwrap().next_batch(3).unwrap().cursor;
    fs::remove_file(folder.path().join("sa_1.tar")).unwrap();
    let error = Loader::new(&config, 3, Some(&cursor), true).err().unwrap().to_string();
    assert!(error.contains("other shards"), "{error}");
    assert!(Loader::new(&config, 3, Some(&Cursor { sources: 0, ..cursor }), true).is_ok());
}

#[test]
fn broken_members_are_skipped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut jpeg = Vec::new();
    JpegEncoder::new(&mut jpeg).write_image(&[90; 64 * 64 * 3], 64, 64, ExtendedColorType::Rgb8).unwrap();
    let json = annotations(20, 16, &[left_half(20, 16)]);
    let text = || b"A caption.".to_vec();
    let triple = |key: &str, image: Vec<u8>, json: &[u8]| -> Files {
        vec![(format!("{key}.jpg"), image), (format!("{key}.json"), json.to_vec()), (format!("{key}.txt"), text())]
    };
    let sized = json.replace(r#""size":[16,20]"#, r#""size":[20,16]"#);
    assert_ne!(sized, json);
    let no_masks = br#"{"annotations": 3}"#;
    let run = br#"{"annotations": [{"segmentation": {"size": [16, 20], "counts": [3, 4]}}]}"#;
    let character = br#"{"annotations": [{"segmentation": {"size": [16, 20], "counts": "~~"}}]}"#;
    let mut files: Files = sound(1);
    let broken = [
        triple("a", b"not an image".to_vec(), json.as_bytes()),
        triple("b", jpeg[..jpeg.len() / 2].to_vec(), json.as_bytes()),
        triple("c", jpeg.clone(), json.as_bytes()),
        triple("d", photograph(1, 20, 16), b"{"),
        triple("e", photograph(1, 20, 16), no_masks),
        triple("f", photograph(1, 20, 16), run),
        triple("g", photograph(1, 20, 16), character),
        triple("h", photograph(1, 20, 16), sized.as_bytes()),
        triple("i", photograph(1, 2, 200), br#"{"annotations": []}"#),
        vec![("j.json".into(), json.clone().into_bytes()), ("j.txt".into(), text())],
        vec![("k.jpg".into(), photograph(1, 20, 16)), ("k.txt".into(), text())],
        vec![("l.jpg".into(), photograph(1, 20, 16)), ("l.json".into(), json.clone().into_bytes())],
        vec![("m.jpg".into(), vec![]), ("m.json".into(), vec![]), ("m.txt".into(), vec![0xff])],
    ];
    let count = broken.len() as u64;
    files.extend(broken.into_iter().flatten());
    files.extend([("README.md".into(), text()), ("notes.txt".into(), text())]);
    files.extend(sound(2));
    write_tar(&folder.path().join("a.tar"), &files);
    let mut config = config(DataFormat::Sa1b, &[path(&folder.path().join("a.tar"))]);
    config.max_broken = 0.9;
    let mut loader = Loader::new(&config, 1, None, true).unwrap();
    assert_eq!(keys(&take(&mut loader, 2)), ["sa_1", "sa_2"]);
    let batch = loader.next_batch(1).unwrap();
    assert_eq!((keys(&batch.samples), batch.cursor.broken, batch.epoch), (vec!["sa_1".to_owned()], count, 1));

    config.max_broken = 0.1;
    let mut loader = Loader::new(&config, 1, None, true).unwrap();
    assert_eq!(take(&mut loader, 1).len(), 1);
    let error = loader.next_batch(4).unwrap_err().to_string();
    assert!(error.contains("are broken, more than data.max_broken = 0.1"), "{error}");
    assert!(error.contains("a.tar/a: no readable image") || error.contains("a.tar/a: "), "{error}");
}

#[test]
fn many_broken_samples_stop_the_run_before_the_epoch_ends() {
    let folder = tempfile::tempdir().unwrap();
    let bad = |number: usize| vec![(format!("{number}.jpg"), vec![]), (format!("{number}.json"), vec![])];
    let mut files: Files = (0..200).flat_map(bad).collect();
    files.splice(0..0, sound(0));
    write_tar(&folder.path().join("a.tar"), &files);
    let captions = folder.path().join("captions.json");
    let names: serde_json::Map<_, _> = (0..200).map(|number| (number.to_string(), "Text.".into())).collect();
    fs::write(&captions, serde_json::to_string(&names).unwrap()).unwrap();
    let mut config = config(DataFormat::Sa1b, &[path(folder.path())]);
    config.captions = Some(captions);
    config.max_broken = 0.05;
    let error = Loader::new(&config, 1, None, true).unwrap().next_batch(2).unwrap_err().to_string();
    assert!(error.starts_with("6 of 7 samples are broken"), "{error}");
}

#[test]
fn a_cut_or_foreign_shard_is_named_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    four_shards(folder.path());
    let whole = fs::read(folder.path().join("sa_0.tar")).unwrap();
    fs::write(folder.path().join("sa_0.tar"), &whole[..whole.len() / 2]).unwrap();
    fs::write(folder.path().join("sa_1.tar"), [0x1f, 0x8b, 8, 0].repeat(400)).unwrap();
    let config = config(DataFormat::Sa1b, &[path(folder.path())]);
    let mut loader = Loader::new(&config, 1, None, true).unwrap();
    let found: Vec<String> = std::iter::from_fn(|| Some(loader.next_batch(1).unwrap()))
        .take_while(|batch| batch.epoch == 0)
        .flat_map(|batch| keys(&batch.samples))
        .collect();
    // three complete ones before the cut, none of the foreign file, all of the two shards after it
    assert_eq!(
        found,
        ["0", "1", "2"]
            .into_iter()
            .map(str::to_owned)
            .chain((8..22).map(|n| n.to_string()))
            .map(|n| format!("sa_{n}"))
            .collect::<Vec<_>>()
    );

    let config = DataConfig { source: vec![path(&folder.path().join("sa_1.tar")).to_owned()], ..config };
    let error = Loader::new(&config, 1, None, true).unwrap().next_batch(1).unwrap_err().to_string();
    assert!(error.contains("sa_1.tar") && error.contains("broken"), "{error}");
}

#[test]
fn members_pair_up_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut files: Files = (0..30).flat_map(sound).collect();
    files.sort_by_key(|(name, _)| name.rsplit('.').next().map(str::to_owned));
    files.reverse();
    write_tar(&folder.path().join("a.tar"), &files);
    let config = config(DataFormat::Sa1b, &[path(folder.path())]);
    let mut samples = take(&mut Loader::new(&config, 1, None, true).unwrap(), 30);
    samples.sort_by_key(|sample| sample.image[0]);
    for (number, sample) in samples.iter().enumerate() {
        assert_eq!((sample.image[0] as usize, sample.key.clone()), (number, format!("sa_{number}")));
        assert!(sample.prompt.starts_with(&format!("Number {number}.")));
    }
}

#[test]
fn a_jpg_is_the_image_wherever_a_png_of_its_name_stands() {
    let members = |order: [&str; 4]| -> Files {
        let file = |extension: &str| match extension {
            "jpg" => photograph(1, 20, 16),
            "png" => photograph(2, 20, 16),
            "json" => annotations(20, 16, &[left_half(20, 16)]).into_bytes(),
            _ => b"One.".to_vec(),
        };
        order.iter().map(|extension| (format!("sa_1.{extension}"), file(extension))).collect()
    };
    for order in [["png", "json", "txt", "jpg"], ["jpg", "json", "txt", "png"], ["txt", "jpg", "png", "json"]] {
        let folder = tempfile::tempdir().unwrap();
        let mut files = members(order);
        files.extend(sound(3));
        // without a JPEG, the PNG is the image
        files.extend(sound(4).into_iter().map(|(name, bytes)| (name.replace(".jpg", ".png"), bytes)));
        write_tar(&folder.path().join("a.tar"), &files);
        let config = config(DataFormat::Sa1b, &[path(folder.path())]);
        let batch = Loader::new(&config, 1, None, true).unwrap().next_batch(3).unwrap();
        let numbers: Vec<u8> = batch.samples.iter().map(|sample| sample.image[0]).collect();
        assert_eq!((numbers, batch.cursor.broken), (vec![1, 3, 4], 0), "{order:?}");
    }
}

#[test]
fn captions_come_from_every_kind_of_file() {
    let columns = Columns { key: "image", caption: "caption" };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name)
    };
    let object = write("a.json", r#"{"sa_9": "Nine.", "images/sa_10.jpg": "Ten.", "sa_000000000011": "Elf ✓"}"#);
    let list = write(
        "b.json",
        r#"[{"image": "sa_9.jpg", "caption": "Nine.", "x": [1]}, {"image": 10, "caption": "Ten."}, {"caption": "Elf ✓", "image": "11"}]"#,
    );
    let lines = write(
        "c.jsonl",
        "{\"image\": 9, \"caption\": \"Nine.\"}\n{\"image\": \"sa_10\", \"caption\": \"Ten.\"}\n\n{\"image\": \"./a/11.png\", \"caption\": \"Elf ✓\"}",
    );
    for file in [object, list, lines] {
        let captions = Captions::read(&file, columns).unwrap();
        assert_eq!(captions.count(), 3);
        for (key, text) in [("sa_9", "Nine."), ("9", "Nine."), ("sa_10", "Ten."), ("10", "Ten."), ("sa_0011", "Elf ✓")]
        {
            assert_eq!(captions.get(key).unwrap().as_deref(), Some(text), "{} {key}", file.display());
        }
        for key in ["sa_1", "99", "", "sa_", "sa_9x", "0011"] {
            assert_eq!(captions.get(key).unwrap(), None);
        }
    }
    let parquet = Captions::read(&Path::new(FIXTURES).join("captions.parquet"), columns).unwrap();
    assert_eq!(parquet.count(), 40);
    assert_eq!(parquet.get("sa_39").unwrap().unwrap(), "Caption of image 39, with ünïcode.");
    let columns = Columns { key: "id", caption: "text" };
    let parquet = Captions::read(&Path::new(FIXTURES).join("captions_int.parquet"), columns).unwrap();
    assert_eq!(parquet.count(), 39);
    assert_eq!(parquet.get("sa_39").unwrap().unwrap(), "Caption of image 39, with ünïcode.");
    assert_eq!(parquet.get("sa_3").unwrap(), None);
}

#[test]
fn keys_in_folders_take_the_nearest_caption() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.json");
    fs::write(&file, r#"{"a/1.jpg": "A", "b/1.jpg": "B", "c/2": "C", "d/2": "C", "3": "three", "3.png": "three"}"#)
        .unwrap();
    let captions = Captions::read(&file, Columns { key: "image", caption: "caption" }).unwrap();
    assert_eq!(captions.get("a/1").unwrap().unwrap(), "A");
    assert_eq!(captions.get("x/b/1").unwrap().unwrap(), "B");
    assert!(captions.get("1").unwrap_err().to_string().contains("both fit"));
    assert_eq!(captions.get("2").unwrap().unwrap(), "C");
    assert_eq!(captions.get("3").unwrap().unwrap(), "three");
    assert_eq!(captions.get("e/1").unwrap(), None);
}

#[test]
fn bad_caption_files_are_refused_with_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let error = |name: &str, text: &[u8]| {
        let file = folder.path().join(name);
        fs::write(&file, text).unwrap();
        let error = Captions::read(&file, Columns { key: "image", caption: "caption" }).err().unwrap().to_string();
        assert!(error.starts_with(path(&file)), "{error}");
        error
    };
    assert!(error("a.json", b"{\"a\": \"b\",\n 3}").contains("line 2"));
    assert!(error("b.json", br#"{"info": {"a": 1}}"#).contains("wanted: an object"));
    assert!(error("c.json", b"{}").contains("no caption"));
    assert!(error("d.json", b"{\"image\": \"a\", \"caption\": \"b\"}\n{}").contains(".jsonl"));
    assert!(
        error("e.jsonl", b"{\"image\": \"a\", \"caption\": \"b\"}\n{\"image\": \"a\", \"text\": \"b\"}")
            .contains("record 2: there is no `caption`, only: image, text")
    );
    assert!(error("f.jsonl", b"{\"image\": [1], \"caption\": \"b\"}").contains("neither text"));
    assert!(error("g.parquet", b"PAR1 no").contains("Parquet"));
    let parquet = fs::read(Path::new(FIXTURES).join("captions_int.parquet")).unwrap();
    assert!(error("h.parquet", &parquet).contains("no column `image`, only: id, text"));
    assert!(error("i.parquet", &parquet[..parquet.len() - 9]).contains("Parquet"));
    assert!(Captions::read(&folder.path().join("none"), Columns { key: "a", caption: "b" }).is_err());
}

#[test]
fn sentences_end_at_marks_before_white_space() {
    let text = "A 3.5 cm cat\n sits.  It says \"Hi!\" Then (so it seems.) it goes... Why? End";
    assert_eq!(first_sentences(text, 1), "A 3.5 cm cat sits.");
    assert_eq!(first_sentences(text, 2), "A 3.5 cm cat sits. It says \"Hi!\"");
    assert_eq!(first_sentences(text, 3), "A 3.5 cm cat sits. It says \"Hi!\" Then (so it seems.)");
    assert_eq!(first_sentences(text, 5), "A 3.5 cm cat sits. It says \"Hi!\" Then (so it seems.) it goes... Why?");
    assert_eq!(first_sentences(text, 0), text.split_whitespace().collect::<Vec<_>>().join(" "));
    assert_eq!(first_sentences("", 2), "");
}

/// The released code takes `p.split(".")[0] + "." + p.split(".")[1] + "."`, which needs two full stops, and breaks at
/// full stops that end no sentence.
#[test]
fn two_sentences_are_those_of_the_released_code() {
    let released = |text: &str| {
        let mut parts = text.split('.');
        Some(format!("{}.{}.", parts.next()?, parts.next()?))
    };
    for text in [
        "The image shows a cat. It sits on a mat.",
        "The image shows a cat. It sits on a mat. There is a dog, too. The dog sleeps.",
        "A red car, parked by the road. Trees stand behind it. ",
        "One. Two. Three",
    ] {
        assert_eq!(Some(first_sentences(text, 2)), released(text), "{text}");
    }
    // The released code adds a full stop, breaks off in a number, or stops the run.
    assert_eq!(first_sentences("One sentence alone.", 2), "One sentence alone.");
    assert_eq!(first_sentences("It weighs 3.5 kg. It is red. It is here.", 2), "It weighs 3.5 kg. It is red.");
    assert_eq!(first_sentences("no full stop at all", 2), "no full stop at all");
}

#[test]
fn wrong_sources_and_missing_captions_are_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |config: &DataConfig| Loader::new(config, 0, None, true).err().unwrap().to_string();
    let nothing = folder.path().join("none_*.tar");
    assert!(refused(&config(DataFormat::Sa1b, &[path(&nothing)])).contains("nothing matches"));
    assert!(refused(&config(DataFormat::Folder, &[path(folder.path())])).contains("holds no files"));
    assert!(refused(&config(DataFormat::Sa1b, &[])).contains("data.source is empty"));
    assert!(refused(&config(DataFormat::Sa1b, &["a[.tar"])).contains("a[.tar"));
    let files: Files = sound(3).into_iter().filter(|(name, _)| !name.ends_with("txt")).collect();
    let tar = folder.path().join("a.tar");
    write_tar(&tar, &files);
    let error = refused(&config(DataFormat::Sa1b, &[path(&tar)]));
    assert!(error.contains("data.captions") && error.contains("KEY.txt"), "{error}");
    assert!(refused(&config(DataFormat::Coco, &[path(&tar)])).contains("is no folder"));
    let mut coco = config(DataFormat::Coco, &[FIXTURES]);
    assert!(refused(&coco).contains("data.labels is missing"));
    coco.labels = Some(folder.path().into());
    assert!(refused(&coco).contains("data.classes is missing"));
    coco.classes = Some(folder.path().join("classes.json"));
    assert!(refused(&coco).contains("classes.json"));
    for (text, what) in [("3", "JSON list"), ("{\"a\": \"b\"}", "no number"), ("[1]", "no text"), ("[]", "no class")] {
        fs::write(folder.path().join("classes.json"), text).unwrap();
        assert!(refused(&coco).contains(what), "{}", refused(&coco));
    }
}

#[test]
fn unused_masks_are_an_error_where_masks_are_wanted() {
    let folder = tempfile::tempdir().unwrap();
    write_tar(&folder.path().join("a.tar"), &(0..5).flat_map(sound).collect::<Files>());
    let mut config = config(DataFormat::Sa1b, &[path(folder.path())]);
    config.min_mask_area = 0.6;
    let mut loader = Loader::new(&config, 1, None, true).unwrap();
    assert!(take(&mut loader, 5).iter().all(|sample| sample.masks.is_empty()));
    assert_eq!((loader.cursor.epoch_samples, loader.cursor.epoch_with_masks), (5, 0));
    let error = loader.next_batch(1).unwrap_err().to_string();
    assert!(error.contains("none of the 5 images of epoch 0 brought a usable mask"), "{error}");
    assert_eq!(take(&mut Loader::new(&config, 1, None, false).unwrap(), 12).len(), 12);
    // dropped captions drop their masks, which does not count as having no usable mask
    (config.min_mask_area, config.caption_dropout) = (0.1, 1.0);
    let samples = take(&mut Loader::new(&config, 1, None, true).unwrap(), 12);
    assert!(samples.iter().all(|sample| sample.prompt.is_empty() && sample.masks.is_empty()));
}

#[test]
fn masks_are_filtered_by_area_largest_first() {
    let folder = tempfile::tempdir().unwrap();
    let block = |columns: usize| (0..400).map(|pixel| pixel % 20 < columns).collect::<Vec<bool>>();
    let masks = [block(3), block(20), block(0), block(1), block(9), block(9)];
    let mut files: Files = sound(0);
    files[0].1 = photograph(0, 20, 20);
    files[1].1 = annotations(20, 20, &masks).into_bytes();
    write_tar(&folder.path().join("a.tar"), &files);
    let mut config = config(DataFormat::Sa1b, &[path(folder.path())]);
    config.resolution = 20;
    let mut areas = |least: f64, most: usize| -> Vec<usize> {
        (config.min_mask_area, config.max_masks) = (least, most);
        take(&mut Loader::new(&config, 0, None, false).unwrap(), 1)[0].masks.iter().map(|mask| mask.area()).collect()
    };
    assert_eq!(areas(0.0, 32), [400, 180, 180, 60, 20]);
    assert_eq!(areas(0.05, 32), [400, 180, 180, 60, 20]);
    assert_eq!(areas(0.0501, 32), [400, 180, 180, 60]);
    assert_eq!(areas(0.0, 2), [400, 180]);
}

/// The picture is the mask: white inside, black outside.
#[test]
fn image_and_masks_are_cropped_scaled_and_mirrored_alike() {
    let folder = tempfile::tempdir().unwrap();
    let (width, height) = (90usize, 61usize);
    let inside = |x: usize, y: usize| (x as f64 - 30.0).powi(2) + 1.7 * (y as f64 - 20.0).powi(2) < 300.0;
    let mask: Vec<bool> = (0..width * height).map(|pixel| inside(pixel % width, pixel / width)).collect();
    let pixels: Vec<u8> = mask.iter().flat_map(|&inside| [u8::from(inside) * 255; 3]).collect();
    let mut png = Vec::new();
    PngEncoder::new(&mut png).write_image(&pixels, 90, 61, ExtendedColorType::Rgb8).unwrap();
    let files: Files = (0..40)
        .flat_map(|number| {
            let json = annotations(width, height, std::slice::from_ref(&mask)).into_bytes();
            [
                (format!("{number}.jpg"), png.clone()),
                (format!("{number}.json"), json),
                (format!("{number}.txt"), vec![]),
            ]
        })
        .collect();
    write_tar(&folder.path().join("a.tar"), &files);
    for (resolution, crop) in [
        (61, Crop::Random),
        (40, Crop::Random),
        (40, Crop::Center),
        (100, Crop::Random),
        (40, Crop::Stretch),
        (100, Crop::Stretch),
    ] {
        let mut config = config(DataFormat::Sa1b, &[path(folder.path())]);
        (config.resolution, config.crop, config.flip) = (resolution, crop, true);
        let samples = take(&mut Loader::new(&config, 5, None, true).unwrap(), 40);
        let mut kinds: Vec<&[u8]> = samples.iter().map(|sample| sample.image.as_slice()).collect();
        kinds.sort();
        kinds.dedup();
        let enough = if crop == Crop::Random { 15 } else { 2 };
        assert!(kinds.len() >= enough, "{} different squares", kinds.len());
        for sample in &samples {
            let pixel = |pixel: usize| sample.masks[0].get(pixel % resolution, pixel / resolution);
            let mask: Vec<bool> = (0..resolution * resolution).map(pixel).collect();
            let differ = |pixel: &usize| (sample.image[3 * pixel] >= 128) != mask[*pixel];
            // bilinear and nearest may differ on the outline alone
            let wrong = (0..mask.len()).filter(differ).count();
            let most = if resolution == 61 { 0 } else { mask.len() / 150 };
            assert!(wrong <= most, "{wrong} of {} at {resolution}", mask.len());
        }
    }
}

fn write_map(path: &Path, width: u32, values: &[u8]) {
    let mut png = Vec::new();
    let height = values.len() as u32 / width;
    PngEncoder::new(&mut png).write_image(values, width, height, ExtendedColorType::L8).unwrap();
    fs::write(path, png).unwrap();
}

/// Stripes of eight columns of a 32 × 16 map.
fn stripes(values: [u8; 4]) -> Vec<u8> {
    (0..512).map(|pixel| values[pixel % 32 / 8]).collect()
}

#[test]
fn coco_makes_a_prompt_of_the_classes_and_a_mask_of_each() {
    let folder = tempfile::tempdir().unwrap();
    let [images, labels] = ["images/train", "labels/train"].map(|name| folder.path().join(name));
    [&images, &labels].into_iter().for_each(|folder| fs::create_dir_all(folder).unwrap());
    fs::write(images.join("000000000007.jpg"), photograph(7, 32, 16)).unwrap();
    write_map(&labels.join("000000000007.png"), 32, &stripes([0, 21, 3, 255]));
    fs::write(images.join("000000000008.jpg"), photograph(8, 32, 16)).unwrap();
    write_map(&labels.join("000000000008.png"), 32, &stripes([3, 3, 3, 99]));
    fs::write(images.join("000000000009.jpg"), photograph(9, 32, 16)).unwrap();
    let classes = folder.path().join("classes.json");
    fs::write(&classes, r#"{"21": "cow", "3": "traffic light", "255": "nothing"}"#).unwrap();
    for (source, labels) in [("images", "labels"), ("images/train", "labels/train"), ("images/train", "labels")] {
        let mut config = config(DataFormat::Coco, &[path(&folder.path().join(source))]);
        config.labels = Some(folder.path().join(labels));
        config.classes = Some(classes.clone());
        let batch = Loader::new(&config, 0, None, true).unwrap().next_batch(3).unwrap();
        assert_eq!(batch.cursor.broken, 1);
        let sample = &batch.samples[0];
        assert_eq!((sample.prompt.as_str(), sample.image[0]), ("traffic light cow", 7));
        assert_eq!(sample.classes, ["traffic light", "cow"]);
        // the window is columns 8 to 24
        let found: Vec<_> =
            sample.masks.iter().map(|mask| (mask.class, mask.area(), mask.get(0, 0), mask.get(15, 0))).collect();
        assert_eq!(found, [(Some(0), 128, false, true), (Some(1), 128, true, false)]);
        assert_eq!(batch.samples[1].prompt, "traffic light");
        assert_eq!(batch.samples[1].masks[0].area(), 256);
    }
    let mut config = config(DataFormat::Coco, &[path(&images)]);
    (config.labels, config.classes) = (Some(labels.clone()), Some(classes));
    write_map(&labels.join("000000000008.png"), 32, &stripes([3, 0, 99, 3]));
    let error = Loader::new(&config, 0, None, true).unwrap().next_batch(3).unwrap_err().to_string();
    assert!(error.contains("000000000008.png: label 99 at x 16, y 0 has no name in"), "{error}");
    config.allow = vec![Allowed::LabelsUnnamed];
    let batch = Loader::new(&config, 0, None, true).unwrap().next_batch(2).unwrap();
    assert_eq!(batch.samples[1].masks.len(), 0);
}

#[test]
fn panoptic_segments_of_a_class_are_one_mask() {
    let folder = tempfile::tempdir().unwrap();
    let [images, labels] = ["images", "panoptic"].map(|name| folder.path().join(name));
    [&images, &labels].into_iter().for_each(|folder| fs::create_dir_all(folder).unwrap());
    fs::write(images.join("000000000007.jpg"), photograph(7, 16, 16)).unwrap();
    let ids = [70_001u32, 5, 300, 0];
    let pixels: Vec<u8> =
        (0..256).flat_map(|pixel: usize| ids[pixel % 16 / 4].to_le_bytes().into_iter().take(3)).collect();
    let mut png = Vec::new();
    PngEncoder::new(&mut png).write_image(&pixels, 16, 16, ExtendedColorType::Rgb8).unwrap();
    fs::write(labels.join("000000000007.png"), png).unwrap();
    let json = folder.path().join("panoptic.json");
    fs::write(
        &json,
        r#"{"info": {"a": [1]}, "annotations": [{"file_name": "000000000007.png", "image_id": 7, "segments_info":
        [{"id": 70001, "category_id": 4, "area": 1}, {"id": 5, "category_id": 2}, {"id": 300, "category_id": 4}]}],
        "categories": [{"id": 4, "name": "dog", "isthing": 1}, {"id": 2, "name": "sky"}]}"#,
    )
    .unwrap();
    let mut config = config(DataFormat::Coco, &[path(&images)]);
    (config.labels, config.panoptic) = (Some(labels), Some(json.clone()));
    let sample = &take(&mut Loader::new(&config, 0, None, true).unwrap(), 1)[0];
    assert_eq!((sample.prompt.as_str(), sample.masks.len()), ("sky dog", 2));
    assert_eq!(sample.masks.iter().map(|mask| mask.area()).collect::<Vec<_>>(), [64, 128]);
    assert!(
        sample.masks[1].get(0, 0)
            && sample.masks[0].get(4, 0)
            && sample.masks[1].get(8, 0)
            && !sample.masks[1].get(12, 0)
    );
    let stripped = fs::read_to_string(&json).unwrap().replace("70001", "70002");
    fs::write(&json, stripped).unwrap();
    config.max_broken = 0.0;
    let error = Loader::new(&config, 0, None, true).unwrap().next_batch(1).unwrap_err().to_string();
    assert!(error.contains("000000000007.png: label 70001 at x 0, y 0 is no segment of its image"), "{error}");
    fs::write(&json, r#"{"annotations": [{"file_name": 3}]}"#).unwrap();
    let error = Loader::new(&config, 0, None, true).err().unwrap().to_string();
    assert!(error.contains("panoptic.json") && error.contains("line 1"), "{error}");
}

#[test]
fn folders_of_images_captions_and_label_maps() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    fs::write(folder.path().join("a.jpg"), photograph(1, 32, 16)).unwrap();
    fs::write(folder.path().join("a.txt"), "One. Two. Three.\n").unwrap();
    write_map(&folder.path().join("a.png"), 32, &stripes([0, 5, 7, 5]));
    fs::write(folder.path().join("b.PNG"), photograph(2, 32, 16)).unwrap();
    fs::write(folder.path().join("b.txt"), "Bee").unwrap();
    write_map(&folder.path().join("b_mask.png"), 32, &stripes([9, 9, 0, 0]));
    fs::write(inner.join("c.jpeg"), photograph(3, 32, 16)).unwrap();
    fs::write(inner.join("c.txt"), "Sea").unwrap();
    let mut config = config(DataFormat::Folder, &[path(folder.path())]);
    let samples = take(&mut Loader::new(&config, 0, None, true).unwrap(), 3);
    assert_eq!(keys(&samples), ["a", "b", "inner/c"]);
    assert_eq!(
        samples.iter().map(|sample| sample.prompt.as_str()).collect::<Vec<_>>(),
        ["One. Two. Three.", "Bee", "Sea"]
    );
    assert_eq!(samples.iter().map(|sample| sample.image[0]).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(samples.iter().map(|sample| sample.masks.len()).collect::<Vec<_>>(), [2, 1, 0]);
    assert!(samples.iter().all(|sample| sample.classes.is_empty()));
    assert!(samples.iter().flat_map(|sample| &sample.masks).all(|mask| mask.class.is_none() && mask.area() == 128));

    // without captions, but with names: as coco
    fs::remove_file(folder.path().join("a.txt")).unwrap();
    fs::remove_file(folder.path().join("b.txt")).unwrap();
    fs::write(folder.path().join("names.json"), r#"{"5": "tree", "7": "cat", "9": "sky"}"#).unwrap();
    config.classes = Some(folder.path().join("names.json"));
    let samples = take(&mut Loader::new(&config, 0, None, true).unwrap(), 3);
    assert_eq!(samples.iter().map(|sample| sample.prompt.as_str()).collect::<Vec<_>>(), ["tree cat", "sky", "Sea"]);
    assert_eq!(samples[0].classes, ["tree", "cat"]);
    assert_eq!(samples[0].masks.iter().map(|mask| mask.class).collect::<Vec<_>>(), [Some(0), Some(1)]);
}

#[test]
fn every_kind_of_pixel_becomes_the_rgb_of_pillow() {
    let kinds = PathBuf::from(FIXTURES).join("images/kinds");
    for name in ["grey.jpg", "cmyk.jpg", "rgb.jpg", "grey.png", "rgba.png", "palette.png", "bilevel.png"] {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(kinds.join(name), folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).with_extension("txt"), "x").unwrap();
        let mut config = config(DataFormat::Folder, &[path(folder.path())]);
        config.resolution = 48;
        let sample = &take(&mut Loader::new(&config, 0, None, false).unwrap(), 1)[0];
        let expected = image::open(kinds.join(format!("{name}.expected.png"))).unwrap().into_rgb8().into_raw();
        let differences = sample.image.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b));
        assert_eq!(differences.max(), Some(0), "{name}");
    }
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "reads /proc")]
fn dropping_the_loader_ends_its_threads() {
    let folder = tempfile::tempdir().unwrap();
    four_shards(folder.path());
    let threads = || fs::read_dir("/proc/self/task").map(|tasks| tasks.count()).unwrap_or(0);
    let config = DataConfig { workers: 5, ..config(DataFormat::Sa1b, &[path(folder.path())]) };
    let started = std::time::Instant::now();
    for _ in 0..20 {
        let mut loader = Loader::new(&config, 0, None, true).unwrap();
        take(&mut loader, 1);
    }
    // tests in parallel start and stop threads of their own: 20 leaked loaders would have 120
    assert!(threads() < 100, "{} threads", threads());
    assert!(started.elapsed().as_secs() < 60);
}

#[test]
fn real_photographs_stream() {
    if !Path::new(SHARED).exists() {
        println!("skipped: {SHARED} is absent");
        return;
    }
    let shared = |name: &str| format!("{SHARED}/{name}");
    let mut sa1b = config(DataFormat::Sa1b, &[&shared("sa1b/sa_*.tar")]);
    (sa1b.captions, sa1b.resolution, sa1b.max_broken) = (Some(shared("sa1b/captions.json").into()), 64, 0.0);
    let mut loader = Loader::new(&sa1b, 0, None, true).unwrap();
    let samples = take(&mut loader, 100);
    assert!(samples.iter().all(|sample| sample.prompt.starts_with("A photo of ")));
    assert!(samples.iter().filter(|sample| !sample.masks.is_empty()).count() >= 99);
    assert_eq!(loader.next_batch(1).unwrap().epoch, 1);

    let mut coco = config(DataFormat::Coco, &[&shared("coco/images/train2017")]);
    (coco.resolution, coco.max_broken) = (64, 0.0);
    (coco.labels, coco.classes) = (Some(shared("coco/labels").into()), Some(shared("coco/classes.json").into()));
    let by_label = take(&mut Loader::new(&coco, 0, None, true).unwrap(), 100);
    (coco.labels, coco.panoptic) =
        (Some(shared("coco/panoptic").into()), Some(shared("coco/panoptic_train2017.json").into()));
    let by_segment = take(&mut Loader::new(&coco, 0, None, true).unwrap(), 100);
    assert!(by_label == by_segment, "label maps and panoptic segments of the same photographs differ");
    assert!(by_label.iter().all(|sample| sample.masks.len() == sample.classes.len()));
}

/// Bytes flipped, removed and doubled anywhere, tar headers included: errors, never a panic or a hang.
#[test]
fn damaged_bytes_never_panic() {
    use rand::{Rng, SeedableRng};
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    let folder = tempfile::tempdir().unwrap();
    let mut jpeg = Vec::new();
    let noise: Vec<u8> = (0..20 * 16 * 3).map(|_| random.random::<u8>()).collect();
    JpegEncoder::new(&mut jpeg).write_image(&noise, 20, 16, ExtendedColorType::Rgb8).unwrap();
    let (tar, map) = (folder.path().join("a.tar"), folder.path().join("x.png"));
    let mut files: Files = (0..3).flat_map(sound).collect();
    files[0].1 = jpeg.clone();
    write_tar(&tar, &files);
    fs::write(folder.path().join("x.jpg"), photograph(3, 32, 16)).unwrap();
    fs::write(folder.path().join("x.txt"), "x").unwrap();
    write_map(&map, 32, &stripes([1, 2, 3, 4]));
    let sound = [fs::read(&tar).unwrap(), fs::read(&map).unwrap()];
    let mut sa1b = config(DataFormat::Sa1b, &[path(&tar)]);
    let mut labelled = config(DataFormat::Folder, &[path(folder.path())]);
    (sa1b.max_broken, labelled.max_broken) = (0.0, 0.0);
    let mut failed = 0;
    for round in 0..400 {
        let mut damaged = sound.clone();
        for (bytes, count) in damaged.iter_mut().zip([12, 1]) {
            for _ in 0..random.random_range(1..=count) {
                let place = random.random_range(0..bytes.len());
                match random.random_range(0..4) {
                    0 => bytes.truncate(place.max(1)),
                    1 => bytes[place] ^= 1 << random.random_range(0..8),
                    2 => bytes[place] = random.random(),
                    _ => bytes.extend_from_within(place..),
                }
            }
        }
        fs::write(&tar, &damaged[0]).unwrap();
        fs::write(&map, &damaged[1]).unwrap();
        for config in [&sa1b, &labelled] {
            let batch = Loader::new(config, round, None, false).and_then(|mut loader| loader.next_batch(4));
            let error = batch.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(!error.contains("panicked") && !error.contains("unexpectedly"), "round {round}: {error}");
            failed += u32::from(!error.is_empty());
        }
    }
    assert!(failed > 200, "only {failed} of 800 noticed");
}
