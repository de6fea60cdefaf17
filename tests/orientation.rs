//! Masks and label maps lie over the upright picture, whichever way they and the picture are stored.
mod data_config;

use data_config::plain;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use seg4diff::config::{DataConfig, DataFormat};
use seg4diff::data::codec::labels::encode_labels;
use seg4diff::data::codec::photograph::{Orientation, exchanges_sides, upright};
use seg4diff::data::codec::rle::RunLengths;
use seg4diff::data::{Loader, Sample};
use seg4diff::eval::segmentation::LabelledFolder;
use std::fs;
use std::path::Path;

/// The upright picture.
const SIZE: (usize, usize) = (20, 16);

fn config(format: DataFormat, folder: &Path) -> DataConfig {
    let coco = format == DataFormat::Coco;
    let at = |name: &str| folder.join(name);
    DataConfig {
        caption_key_column: "image".into(),
        labels: coco.then(|| at("labels")),
        classes: coco.then(|| at("classes.json")),
        max_masks: 8,
        workers: 1,
        ..plain(format, &[at("images")])
    }
}

/// What stands upright when it is turned so.
fn stored<T: Copy>(orientation: Orientation, pixels: &[T]) -> Vec<T> {
    let inverse = match orientation {
        Orientation::Rotate90 => Orientation::Rotate270,
        Orientation::Rotate270 => Orientation::Rotate90,
        same => same,
    };
    upright(inverse, SIZE, pixels)
}

fn stored_size(orientation: Orientation) -> (usize, usize) {
    if exchanges_sides(orientation) { (SIZE.1, SIZE.0) } else { SIZE }
}

fn pixels() -> Vec<[u8; 3]> {
    (0..SIZE.1).flat_map(|y| (0..SIZE.0).map(move |x| [12 * x as u8, 15 * y as u8, (7 * x + 3 * y) as u8])).collect()
}

/// Three labels, none of which is symmetric.
fn labels() -> Vec<u32> {
    let label = |x: usize, y: usize| {
        if x < 8 && y < 5 {
            2
        } else if x + y > 22 {
            3
        } else {
            1
        }
    };
    (0..SIZE.1).flat_map(|y| (0..SIZE.0).map(move |x| label(x, y))).collect()
}

/// The picture as a PNG that says this orientation.
fn picture(orientation: Orientation) -> Vec<u8> {
    let (width, height) = stored_size(orientation);
    let pixels = stored(orientation, &pixels()).concat();
    let mut png = Vec::new();
    let encoder = PngEncoder::new(&mut png);
    encoder.write_image(&pixels, width as u32, height as u32, ExtendedColorType::Rgb8).unwrap();
    let mut chunk = b"eXIfII*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    chunk.extend([orientation.to_exif(), 0, 0, 0, 0, 0, 0, 0]);
    let mut checksum = flate2::Crc::new();
    checksum.update(&chunk);
    let chunk = [&(chunk.len() as u32 - 4).to_be_bytes()[..], &chunk, &checksum.sum().to_be_bytes()].concat();
    [&png[..33], &chunk, &png[33..]].concat()
}

/// A folder of one sample; masks are stored as this orientation says.
fn write(format: DataFormat, of_picture: Orientation, of_masks: Orientation) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("images")).unwrap();
    fs::create_dir_all(folder.path().join("labels")).unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    write("images/a.png", &picture(of_picture));
    let (width, height) = stored_size(of_masks);
    let map = stored(of_masks, &labels());
    match format {
        DataFormat::Folder => {
            write("images/a.txt", b"a b");
            write("images/a_mask.png", &encode_labels(width, height, &map).unwrap());
        }
        DataFormat::Coco => {
            write("classes.json", br#"{"1": "one", "2": "two", "3": "three"}"#);
            write("labels/a.png", &encode_labels(width, height, &map).unwrap());
        }
        DataFormat::Sa1b => {
            let mask = |label: u32| {
                let bits: Vec<bool> = map.iter().map(|value| *value == label).collect();
                let text = RunLengths::encode(height, width, &bits).unwrap().to_text();
                serde_json::json!({"segmentation": {"size": [height, width], "counts": text}})
            };
            let annotations = [1, 2, 3].map(mask);
            let masks = serde_json::json!({"image": {"width": width, "height": height}, "annotations": annotations});
            write("images/a.json", masks.to_string().as_bytes());
            write("images/a.txt", b"a b");
        }
    }
    folder
}

fn sample(format: DataFormat, of_picture: Orientation, of_masks: Orientation) -> Sample {
    let folder = write(format, of_picture, of_masks);
    let mut loader = Loader::new(&config(format, folder.path()), 0, None, true).unwrap();
    loader.next_batch(1).unwrap().samples.remove(0)
}

#[test]
fn training_sees_what_it_would_see_of_an_upright_file() {
    const UPRIGHT: Orientation = Orientation::NoTransforms;
    for format in [DataFormat::Folder, DataFormat::Coco, DataFormat::Sa1b] {
        let wanted = sample(format, UPRIGHT, UPRIGHT);
        assert_eq!(wanted.masks.len(), 3);
        for orientation in (1..=8).filter_map(Orientation::from_exif) {
            let found = sample(format, orientation, UPRIGHT);
            assert!(found == wanted, "{format:?} {orientation:?}, upright masks");
            // Otherwise nobody can tell.
            if exchanges_sides(orientation) {
                let found = sample(format, orientation, orientation);
                assert!(found == wanted, "{format:?} {orientation:?}, masks as stored");
            }
        }
    }
}

#[test]
fn evaluation_pairs_the_upright_picture_with_its_label_map() {
    let read = |of_picture, of_masks| {
        let folder = write(DataFormat::Coco, of_picture, of_masks);
        let at = |name: &str| folder.path().join(name);
        let data = LabelledFolder::open(&at("images"), &at("labels"), &at("classes.json"), &[]).unwrap();
        data.read(0).map(|labelled| (labelled.image, labelled.truth)).map_err(|problem| problem.to_string())
    };
    const UPRIGHT: Orientation = Orientation::NoTransforms;
    let wanted = read(UPRIGHT, UPRIGHT).unwrap();
    for orientation in (5..=8).filter_map(Orientation::from_exif) {
        assert!(read(orientation, UPRIGHT).unwrap() == wanted, "{orientation:?}");
        assert!(read(orientation, orientation).unwrap() == wanted, "{orientation:?}");
    }
    let refused = read(UPRIGHT, Orientation::Rotate90).unwrap_err();
    assert!(refused.contains("16×20 pixels") && refused.contains("has 20×16"), "{refused}");
}
