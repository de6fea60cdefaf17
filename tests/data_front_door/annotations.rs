//! COCO's instances: which picture each entry is of, and what neither has.
use crate::world::{Case, Right, check, write};
use seg4diff::config::{Allowed, DataConfig, DataFormat};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Pictures `a` with a cow and `b` with a pig, each in the left half.
fn document() -> Value {
    let left = json!([[0, 0, 8, 0, 8, 16, 0, 16]]);
    json!({
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "categories": [{"id": 3, "name": "cow"}, {"id": 9, "name": "pig"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "segmentation": left},
            {"id": 2, "image_id": 2, "category_id": 9, "segmentation": left}
        ]
    })
}

/// The pictures in `img` with the changed document, whatever the text of that becomes.
fn text(config: &mut DataConfig, root: &Path, text: impl AsRef<[u8]>) {
    config.format = DataFormat::Coco;
    config.source = vec![root.join("img").to_str().expect("path").into()];
    config.instances = Some(root.join("instances.json"));
    fs::write(root.join("instances.json"), text).expect("document");
}

fn changed(config: &mut DataConfig, root: &Path, change: impl FnOnce(&mut Value)) {
    let mut document = document();
    change(&mut document);
    text(config, root, document.to_string());
}

fn with_names(config: &mut DataConfig, root: &Path, names: [&str; 2]) {
    changed(config, root, |document| {
        (0..2).for_each(|place| document["images"][place]["file_name"] = names[place].into());
    });
}

fn with_ids(config: &mut DataConfig, root: &Path, ids: [Value; 2]) {
    changed(config, root, |document| {
        for (place, id) in ids.into_iter().enumerate() {
            document["images"][place]["id"] = id.clone();
            document["annotations"][place]["image_id"] = id;
        }
    });
}

fn with_categories(config: &mut DataConfig, root: &Path, ids: [Value; 2]) {
    changed(config, root, |document| {
        for (place, id) in ids.into_iter().enumerate() {
            document["categories"][place]["id"] = id.clone();
            document["annotations"][place]["category_id"] = id;
        }
    });
}

const TWO: &str = "img/a.jpg img/b.jpg";
const RIGHT: &str = "a[cow]1 b[pig]1";

#[test]
fn entries_belong_to_pictures_by_their_paths() {
    use Right::{Error, Said, Samples};
    check(&[
        Case {
            name: "names",
            files: TWO,
            change: |config, root| changed(config, root, |_| ()),
            right: Said(RIGHT, &["2 photographs, 2 annotations"]),
        },
        Case {
            name: "names with the folder",
            files: TWO,
            change: |config, root| with_names(config, root, ["img/a.jpg", "./img//b.jpg"]),
            right: Samples(RIGHT),
        },
        Case {
            name: "names of Windows, and of another extension",
            files: TWO,
            change: |config, root| with_names(config, root, ["img\\a.jpg", "b.png"]),
            right: Samples(RIGHT),
        },
        Case {
            name: "names of other folders",
            files: TWO,
            change: |config, root| with_names(config, root, ["train2017/a.jpg", "train2017/b.jpg"]),
            right: Error(&[
                "2 photographs that the annotations do not have: a.jpg, b.jpg",
                "`file_name`",
                "masks_missing",
            ]),
        },
        Case {
            name: "a picture that is not listed",
            files: "img/a.jpg img/b.jpg img/c.jpg",
            change: |config, root| changed(config, root, |_| ()),
            right: Error(&["1 photograph that the annotations do not have: c.jpg"]),
        },
        Case {
            name: "the same, accepted: it is left out",
            files: "img/a.jpg img/b.jpg img/c.jpg",
            change: |config, root| {
                changed(config, root, |_| ());
                config.allow = vec![Allowed::MasksMissing];
            },
            right: Said(RIGHT, &["1 photograph that the annotations do not have: c.jpg"]),
        },
        Case {
            name: "entries of pictures that are not here",
            files: "img/b.jpg",
            change: |config, root| changed(config, root, |_| ()),
            right: Said("b[pig]1", &["1 annotated picture that is not here: a.jpg"]),
        },
        Case {
            name: "a picture without annotations",
            files: TWO,
            change: |config, root| {
                changed(config, root, |document| drop(document["annotations"].as_array_mut().unwrap().pop()))
            },
            right: Said("a[cow]1 b[]0", &["1 photograph without a mask: b.jpg"]),
        },
        Case {
            name: "one entry for two pictures",
            files: "img/a.jpg img/b.jpg img/deep/a.jpg",
            change: |config, root| changed(config, root, |_| ()),
            right: Error(&["data.instances: `a.jpg` fits", "another image of that name", "`file_name`"]),
        },
        Case {
            name: "two pictures of one name, with their folders",
            files: "img/x/a.jpg img/y/a.jpg",
            change: |config, root| with_names(config, root, ["x/a.jpg", "y/a.jpg"]),
            right: Samples("x/a[cow]1 y/a[pig]1"),
        },
        Case {
            name: "two entries for one picture",
            files: TWO,
            change: |config, root| with_names(config, root, ["a.jpg", "a.jpg"]),
            right: Error(&["instances.json", "name one image"]),
        },
        Case {
            name: "entries without a name",
            files: TWO,
            change: |config, root| {
                changed(config, root, |document| {
                    document["images"] = json!([{"id": 1, "coco_url": "x"}, {"id": 2, "coco_url": "y"}]);
                });
            },
            right: Error(&["instances.json", "image 1 has no `file_name`"]),
        },
        Case {
            name: "no entries",
            files: TWO,
            change: |config, root| changed(config, root, |document| document["images"] = json!([])),
            right: Error(&["instances.json", "there are no `images`"]),
        },
    ]);
}

#[test]
fn ids_are_numbers_or_text() {
    use Right::{Error, Samples};
    check(&[
        Case {
            name: "text",
            files: TWO,
            change: |config, root| with_ids(config, root, [json!("x/1"), json!("")]),
            right: Samples(RIGHT),
        },
        Case {
            name: "large numbers",
            files: TWO,
            change: |config, root| with_ids(config, root, [json!(u64::MAX), json!(u64::MAX - 1)]),
            right: Samples(RIGHT),
        },
        Case {
            name: "whole numbers with a point, as tables write them",
            files: TWO,
            change: |config, root| {
                changed(config, root, |document| {
                    document["annotations"][0]["image_id"] = json!(1.0);
                    document["annotations"][1]["category_id"] = json!(9.0);
                });
            },
            right: Samples(RIGHT),
        },
        Case {
            name: "a broken number",
            files: TWO,
            change: |config, root| with_ids(config, root, [json!(1.5), json!(2)]),
            right: Error(&["instances.json", "1.5 is no whole number"]),
        },
        Case {
            name: "a number beyond all integers",
            files: TWO,
            change: |config, root| with_ids(config, root, [json!(1e30), json!(2)]),
            right: Error(&["instances.json", "is no whole number of at most 64 bits"]),
        },
        Case {
            name: "one id for two pictures",
            files: TWO,
            change: |config, root| {
                changed(config, root, |document| {
                    document["images"][1]["id"] = json!(1);
                    document["annotations"][1]["image_id"] = json!(1);
                });
            },
            right: Error(&["instances.json", "images 1 and 2 have one id and two names"]),
        },
        Case {
            name: "an annotation of no picture",
            files: TWO,
            change: |config, root| changed(config, root, |document| document["annotations"][1]["image_id"] = json!(7)),
            right: Error(&["annotation 2 is of an image that is not in `images`"]),
        },
        Case {
            name: "categories as text",
            files: TWO,
            change: |config, root| with_categories(config, root, [json!("3"), json!(" 9")]),
            right: Samples(RIGHT),
        },
        Case {
            name: "the category that label maps ignore",
            files: TWO,
            change: |config, root| with_categories(config, root, [json!(255), json!(0)]),
            right: Samples(RIGHT),
        },
        Case {
            name: "a category that is no number",
            files: TWO,
            change: |config, root| with_categories(config, root, [json!(3), json!(-1)]),
            right: Error(&["instances.json", "`-1` is no whole number from 0"]),
        },
        Case {
            name: "an annotation of no category",
            files: TWO,
            change: |config, root| {
                changed(config, root, |document| document["annotations"][1]["category_id"] = json!(7))
            },
            right: Error(&["category 7, of image 2, has no name", "labels_unnamed"]),
        },
        Case {
            name: "the same, accepted",
            files: TWO,
            change: |config, root| {
                changed(config, root, |document| document["annotations"][1]["category_id"] = json!(7));
                config.allow = vec![Allowed::LabelsUnnamed];
            },
            right: Samples("a[cow]1 b[]0"),
        },
    ]);
}

#[test]
fn documents_that_are_something_else_are_named() {
    use Right::{Error, Samples};
    check(&[
        Case {
            name: "a byte-order mark",
            files: TWO,
            change: |config, root| text(config, root, format!("\u{feff}{}", document())),
            right: Samples(RIGHT),
        },
        Case {
            name: "UTF-16",
            files: TWO,
            change: |config, root| {
                let wide: Vec<u8> = document().to_string().encode_utf16().flat_map(u16::to_le_bytes).collect();
                text(config, root, wide);
            },
            right: Error(&["instances.json", "UTF-16"]),
        },
        Case {
            name: "a pointer of Git LFS",
            files: TWO,
            change: |config, root| text(config, root, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
            right: Error(&["instances.json", "git lfs pull"]),
        },
        Case {
            name: "gzip",
            files: TWO,
            change: |config, root| text(config, root, [0x1f, 0x8b, 8, 0, 0, 0, 0, 0]),
            right: Error(&["instances.json", "compressed by gzip"]),
        },
        Case {
            name: "captions",
            files: TWO,
            change: |config, root| {
                changed(config, root, |document| {
                    document["annotations"] = json!([{"image_id": 1, "caption": "a cow"}])
                });
            },
            right: Error(&["instances.json", "no `segmentation`"]),
        },
        Case {
            name: "a list",
            files: TWO,
            change: |config, root| changed(config, root, |document| *document = json!([1])),
            right: Error(&["instances.json", "a COCO document"]),
        },
    ]);
}

#[test]
fn the_files_of_a_case_are_there() {
    let folder = tempfile::tempdir().expect("folder");
    write(folder.path(), "a==x_y\\nz b=x_y");
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).expect("file");
    assert_eq!((read("a").as_str(), read("b").as_str()), ("x_y\nz", "x y"));
}
