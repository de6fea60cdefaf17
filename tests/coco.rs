//! COCO's annotations: instances as pycocotools draws them, panoptic PNGs by image id, names and ids from the JSON.
mod data_config;

use data_config::plain;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use seg4diff::config::{Allowed, DataConfig, DataFormat};
use seg4diff::data::{Loader, Sample};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let file = folder.join(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, content).unwrap();
    file
}

fn png(side: u32, pixels: &[u8], kind: ExtendedColorType) -> Vec<u8> {
    let mut png = Vec::new();
    PngEncoder::new(&mut png).write_image(pixels, side, side, kind).unwrap();
    png
}

fn picture(side: u32) -> Vec<u8> {
    png(side, &vec![99; (side * side * 3) as usize], ExtendedColorType::Rgb8)
}

/// Columns of four pixels of a 16 × 16 panoptic PNG.
fn segments(ids: [u32; 4]) -> Vec<u8> {
    let pixels = (0..256).flat_map(|pixel: usize| ids[pixel % 16 / 4].to_le_bytes().into_iter().take(3));
    png(16, &pixels.collect::<Vec<_>>(), ExtendedColorType::Rgb8)
}

fn config(source: &Path) -> DataConfig {
    plain(DataFormat::Coco, &[source])
}

fn samples(config: &DataConfig, count: usize) -> Result<Vec<Sample>, String> {
    let batch = Loader::new(config, 0, None, true).and_then(|mut loader| loader.next_batch(count));
    batch.map(|batch| batch.samples).map_err(|error| error.to_string())
}

#[test]
fn instances_are_drawn_as_by_pycocotools() {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/data/instances.json");
    let fixture: Value = serde_json::from_slice(&fs::read(fixture).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let expected: Vec<Vec<(u32, String)>> = serde_json::from_value(fixture["expected"].clone()).unwrap();
    for number in 0..expected.len() {
        write(folder.path(), &format!("img/{number}.png"), picture(40));
    }
    let mut config = config(&folder.path().join("img"));
    config.instances = Some(write(folder.path(), "instances.json", fixture["document"].to_string()));
    config.resolution = 40;
    let samples = samples(&config, expected.len()).unwrap();
    let mut compared = 0;
    for (sample, expected) in samples.iter().zip(&expected) {
        let names: Vec<&str> = expected
            .iter()
            .map(|(category, _)| match category {
                3 => "cat",
                7 => "dog",
                _ => "red kite",
            })
            .collect();
        assert_eq!((sample.classes.join("|"), sample.prompt.clone()), (names.join("|"), names.join(" ")));
        for (place, (mask, (_, bits))) in sample.masks.iter().zip(expected).enumerate() {
            let byte = |index: usize| u8::from_str_radix(&bits[2 * index..2 * index + 2], 16).unwrap();
            let expected = (0..1600).map(|pixel| byte(pixel / 8) >> (pixel % 8) & 1 == 1);
            let pixels = (0..1600).map(|pixel| mask.get(pixel % mask.width(), pixel / mask.width()));
            assert!(mask.class == Some(place) && expected.eq(pixels));
            compared += 1;
        }
    }
    assert!(compared > 12, "{compared}");
}

/// A document of four pictures, of which the first has two segments.
fn panoptic() -> Value {
    json!({
        "annotations": [
            {"image_id": 263, "file_name": "a_GT.png", "segments_info": [{"id": 7, "category_id": 1}, {"id": 8, "category_id": 2}]},
            {"image_id": "b", "file_name": "b_GT.png", "segments_info": [{"id": 7, "category_id": 2}]}
        ],
        "images": [{"id": 263, "file_name": "a.jpg"}, {"id": "b", "file_name": "deep/b.jpg"}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    })
}

fn panoptic_folder(document: &Value) -> (tempfile::TempDir, DataConfig) {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "img/a.png", picture(16));
    write(folder.path(), "img/deep/b.png", picture(16));
    write(folder.path(), "png/a_GT.png", segments([7, 8, 8, 0]));
    write(folder.path(), "png/b_GT.png", segments([0, 0, 7, 0]));
    let mut config = config(&folder.path().join("img"));
    config.panoptic = Some(write(folder.path(), "pan.json", document.to_string()));
    config.labels = Some(folder.path().join("png"));
    (folder, config)
}

#[test]
fn panoptic_pngs_belong_to_images_by_their_ids() {
    let (_folder, config) = panoptic_folder(&panoptic());
    let found = samples(&config, 2).unwrap();
    let areas = |sample: &Sample| sample.masks.iter().map(|mask| mask.area()).collect::<Vec<_>>();
    assert_eq!((found[0].prompt.as_str(), areas(&found[0])), ("cat dog", vec![64, 128]));
    assert_eq!((found[1].prompt.as_str(), areas(&found[1])), ("dog", vec![64]));
}

#[test]
fn contradictions_of_annotations_are_refused() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut document = panoptic();
        change(&mut document);
        let (_folder, config) = panoptic_folder(&document);
        let error = samples(&config, 2).unwrap_err();
        assert!(error.contains("pan.json") || error.contains(".png"), "{error}");
        error
    };
    let said = refused(&|document| document["annotations"][1]["image_id"] = json!(9));
    assert!(said.contains("annotation 2 is of an image that is not in `images`"), "{said}");
    let said = refused(&|document| document["images"][1]["file_name"] = json!("deep/c.jpg"));
    assert!(said.contains("b.png: the panoptic JSON has no annotation of this image"), "{said}");
    let said = refused(&|document| document["images"][1]["file_name"] = json!("a.jpg"));
    assert!(said.contains("name one image, which is"), "{said}");
    let said = refused(&|document| document["categories"][1]["id"] = json!(1));
    assert!(said.contains("category 1 is both \"cat\" and \"dog\""), "{said}");
    let said = refused(&|document| document["categories"][1]["name"] = json!("cat"));
    assert!(said.contains("labels 1 and 2 are both named \"cat\""), "{said}");
    let said = refused(&|document| document["annotations"][0]["segments_info"][1]["category_id"] = json!(5));
    assert!(said.contains("category 5, of image 263, has no name in"), "{said}");
    let said = refused(&|document| document["annotations"][0]["segments_info"][1]["id"] = json!(5));
    assert!(said.contains("label 8 at x 4, y 0 is no segment of its image"), "{said}");
    let said = refused(&|document| {
        document["annotations"][0] = json!({"image_id": 263, "category_id": 1, "segmentation": [[1, 1, 2, 2, 3, 1]]});
    });
    assert!(said.contains("the file is for data.instances"), "{said}");
    let said = refused(&|document| document["annotations"] = json!([]));
    assert!(said.contains("no `annotations`"), "{said}");
}

#[test]
fn a_class_list_must_be_that_of_the_annotations() {
    let (folder, mut config) = panoptic_folder(&panoptic());
    for (classes, difference) in [
        (r#"{"1": "cat", "2": "dog"}"#, ""),
        (r#"["nothing", "cat", "dog"]"#, ""),
        (r#"["cat", "dog"]"#, "label 0 is \"cat\", but the annotations' categories say no class"),
        (r#"{"1": "dog", "2": "cat"}"#, "label 1 is \"dog\", but the annotations' categories say \"cat\""),
        (r#"{"1": "cat"}"#, "label 2 is no class, but the annotations' categories say \"dog\""),
    ] {
        config.classes = Some(write(folder.path(), "classes.json", classes));
        config.allow = vec![];
        match samples(&config, 2) {
            Ok(found) => assert!(difference.is_empty() && found[0].prompt == "cat dog", "{classes}"),
            Err(error) => assert!(!difference.is_empty() && error.contains(difference), "{error}"),
        }
    }
    config.classes = Some(write(folder.path(), "classes.json", r#"{"1": "a cat", "2": "a dog"}"#));
    config.allow = vec![Allowed::ClassNames];
    assert_eq!(samples(&config, 1).unwrap()[0].prompt, "a cat a dog");
}

#[test]
fn instances_that_say_nothing_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "img/a.png", picture(16));
    let mut config = config(&folder.path().join("img"));
    let mut read = |annotation: Value| {
        let document = json!({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [annotation],
            "categories": [{"id": 1, "name": "cat"}]});
        config.instances = Some(write(folder.path(), "instances.json", document.to_string()));
        samples(&config, 1)
    };
    let whole = json!({"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 8, 0, 8, 16, 0, 16]]});
    assert_eq!(read(whole.clone()).unwrap()[0].masks[0].area(), 128);
    let mut changed = |key: &str, value: Value| {
        let mut annotation = whole.clone();
        annotation[key] = value;
        read(annotation).unwrap_err()
    };
    assert!(changed("category_id", json!(4)).contains("category 4, of image 1, has no name in"));
    assert!(changed("segmentation", json!([[1, 2, 3, 4]])).contains("4 numbers"));
    assert!(changed("segmentation", json!([1, 2, 3, 4])).contains("instances.json"));
    assert!(changed("segmentation", json!("x")).contains("run lengths (`size` and `counts`) or a list of polygons"));
    assert!(changed("segmentation", json!(null)).contains("no `segmentation`"));
    assert!(
        changed("segmentation", json!({"size": [16, 17], "counts": [272]}))
            .contains("17×16 pixels, the image has 16×16")
    );
    assert!(changed("image_id", json!(2)).contains("not in `images`"));
    let panoptic = json!({"image_id": 1, "file_name": "a.png", "segments_info": []});
    assert!(read(panoptic).unwrap_err().contains("the file is for data.panoptic"));
}

#[test]
fn polygons_of_sa1b_are_masks() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "img/a.png", picture(16));
    write(folder.path(), "img/a.txt", "a cat");
    let masks =
        json!({"annotations": [{"segmentation": [[0, 0, 8, 0, 8, 16, 0, 16], [12, 0, 16, 0, 16, 16, 12, 16]]}]});
    write(folder.path(), "img/a.json", masks.to_string());
    let mut config = config(&folder.path().join("img"));
    config.format = DataFormat::Sa1b;
    let sample = &samples(&config, 1).unwrap()[0];
    assert_eq!(sample.masks.iter().map(|mask| mask.area()).collect::<Vec<_>>(), [192]);
}
