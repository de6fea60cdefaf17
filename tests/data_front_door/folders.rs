//! `format = "folder"` and `"coco"`: layouts and their traps.
use crate::world::{Case, Right, allow_all, check, config, outcome, write};
use seg4diff::config::{Allowed, DataConfig, DataFormat};
use seg4diff::data::{DataSet, Inventory};
use std::fs;
use std::path::Path;

fn plain(_: &mut DataConfig, _: &Path) {}

fn captions(config: &mut DataConfig, root: &Path) {
    config.captions = Some(root.with_file_name("captions.json"));
}

fn classes(config: &mut DataConfig, root: &Path) {
    config.classes = Some(root.with_file_name("classes.json"));
}

#[test]
fn layouts_pair_by_name() {
    use Right::{Error, Said, Samples};
    check(&[
        Case {
            name: "pictures in all formats and letter cases",
            files: "a.jpg a.txt b.JPEG b.txt c.WebP c.txt d.TIF d.txt e.PNG e.txt f.bmp f.txt g.gif g.txt h.ppm h.txt",
            change: plain,
            right: Samples("a[a]0 b[b]0 c[c]0 d[d]0 e[e]0 f[f]0 g[g]0 h[h]0"),
        },
        Case {
            name: "label maps beside pictures",
            files: "a.jpg a.png a.txt b.jpg b_mask.png b.txt c.jpg c-masklabel.png c.txt d.png d.mask.png d.txt",
            change: plain,
            right: Said("a[a]2 b[b]2 c[c]2 d[d]2", &["4 photographs, 4 masks, 4 captions"]),
        },
        Case {
            name: "a PNG beside a WebP is its mask",
            files: "p0.jpg p0.png p0.txt p1.webp p1.png p1.txt",
            change: plain,
            right: Samples("p0[p0]2 p1[p1]2"),
        },
        Case {
            name: "a lossless mask of any extension",
            files: "a.jpg a_mask.tif a.txt b.jpg b_mask.bmp b.txt c.jpg c.txt",
            change: plain,
            right: Said("a[a]2 b[b]2 c[c]0", &["3 photographs, 2 masks", "1 photograph without a mask"]),
        },
        Case {
            name: "masks must not be JPEG",
            files: "a.jpg a_mask.jpg a.txt",
            change: plain,
            right: Error(&["1 mask as JPEG: a_mask.jpg", "must not be JPEG", "files_unread"]),
        },
        Case {
            name: "several masks a picture",
            files: "a.jpg a.0.png a.1.png a.txt b.jpg b_mask0.png b_mask1.png b_mask10.png b.txt",
            change: plain,
            right: Said("a[a]2 b[b]3", &["2 photographs, 5 masks"]),
        },
        Case { name: "one numbered mask", files: "a.jpg a.0.png a.txt", change: plain, right: Samples("a[a]1") },
        Case {
            name: "masks/ beside images/",
            files: "images/a.jpg images/a.txt images/in/b.jpg images/in/b.txt masks/a.png masks/in/b_mask.png",
            change: plain,
            right: Said("images/a[a]2 images/in/b[b]2", &["2 photographs, 2 masks, 2 captions"]),
        },
        Case {
            name: "masks/ inside the source, and inside a folder of it",
            files: "a.jpg a.txt in/b.jpg in/b.txt masks/a.png in/masks/b.png",
            change: plain,
            right: Samples("a[a]2 in/b[b]2"),
        },
        Case {
            name: "the source is images/, and masks/ stands beside it",
            files: "images/a.jpg images/a.txt masks/a.png",
            change: |config, root| config.source = vec![root.join("images").to_str().expect("path").into()],
            right: Samples("a[a]2"),
        },
        Case {
            name: "masks are never photographs: captions by file name",
            files: "images/x1.jpg images/x2.jpg masks/x1.png masks/x2.png ../captions.json={\"x1\":\"a\",\"x2\":\"b\"}",
            change: captions,
            right: Samples("images/x1[a]2 images/x2[b]2"),
        },
        Case {
            name: "numbered masks in a folder of masks",
            files: "images/a.jpg images/a.txt masks/a_0.png=x masks/a.0.png masks/a.1.png",
            change: plain,
            right: Error(&["1 mask without its photograph", "a_0.png"]),
        },
        Case {
            name: "the folders of PASCAL VOC",
            files: "JPEGImages/a.jpg JPEGImages/a.txt JPEGImages/b.jpg JPEGImages/b.txt SegmentationClass/a.png \
                    Annotations/a.xml",
            change: plain,
            right: Said("JPEGImages/a[a]2 JPEGImages/b[b]0", &["2 photographs, 1 mask", "1 file not read: 1 .xml"]),
        },
        Case {
            name: "two folders of masks",
            files: "JPEGImages/a.jpg JPEGImages/a.txt SegmentationClass/a.png SegmentationObject/a.png",
            change: plain,
            right: Error(&["1 further mask of one picture", "SegmentationObject/a.png"]),
        },
        Case {
            name: "repeats in folders' names",
            files: "10_cats/a.jpg 10_cats/a.txt 2024_june/b.jpg 2024_june/b.txt 3/c.jpg 3/c.txt",
            change: plain,
            right: Said(
                "10_cats/a[a]0 2024_june/b[b]0 3/c[c]0",
                &[
                    "1 folder with a number before its name; if that says repeats, give them in [[data.sources]]: 10_cats",
                ],
            ),
        },
        Case {
            name: "latents beside pictures",
            files: "a.jpg a.caption=one_girl,_solo a.npz=x b.png b.caption=two b_sd3.npz=x",
            change: plain,
            right: Said("a[one_girl,_solo]0 b[two]0", &["2 files not read: 2 .npz"]),
        },
        Case {
            name: "names in the place of captions",
            files: "a.jpg a_mask.png b.jpg b.txt=two ../classes.json={\"5\":\"cat\",\"7\":\"dog\"}",
            change: classes,
            right: Samples("a[cat_dog]2 b[two]0"),
        },
        Case {
            name: "neither a caption nor a mask, whose names would be the prompt",
            files: "a.jpg a_mask.png b.jpg ../classes.json={\"5\":\"cat\",\"7\":\"dog\"}",
            change: classes,
            right: Error(&["1 photograph without a caption: b.jpg"]),
        },
        Case {
            name: "classes that name a label twice",
            files: "a.jpg a_mask.png ../classes.json={\"5\":\"cat\",\"7\":\"dog\",\"5\":\"cow\"}",
            change: classes,
            right: Error(&["classes.json: label 5 is both \"cat\" and \"cow\""]),
        },
        Case {
            name: "classes that name a label twice, with zeros before it",
            files: "a.jpg a_mask.png ../classes.json={\"05\":\"cat\",\"7\":\"dog\",\"5\":\"cow\"}",
            change: classes,
            right: Error(&["classes.json: label 5 is both \"cat\" and \"cow\""]),
        },
        Case {
            name: "captions in .caption",
            files: "a.jpg a.caption=one b.jpg b.txt=two",
            change: plain,
            right: Samples("a[one]0 b[two]0"),
        },
        Case {
            name: "leading zeros and folders count",
            files: "01.jpg 01.txt=a 1.jpg 1.txt=b x/1.jpg x/1.txt=c",
            change: plain,
            right: Samples("01[a]0 1[b]0 x/1[c]0"),
        },
        Case {
            name: "composed and decomposed names are one",
            files: "caf\u{e9}.jpg cafe\u{301}.txt=a",
            change: plain,
            right: Samples("caf\u{e9}[a]0"),
        },
    ]);
}

#[test]
fn what_looks_like_data_and_is_not_read_is_refused() {
    use Right::{Error, Said, Samples};
    check(&[
        Case {
            name: "picture formats that are not read",
            files: "a.jpg a.txt b.heic b.txt c.AVIF d.jxl e.heic",
            change: plain,
            right: Error(&[
                "4 pictures in formats that are not read: b.heic, c.AVIF, d.jxl, …",
                "convert",
                "files_unread",
            ]),
        },
        Case {
            name: "the same, accepted",
            files: "a.jpg a.txt b.heic b.txt c.AVIF",
            change: allow_all,
            right: Said("a[a]0", &["3 files not read: 1 .avif, 1 .heic (convert to JPEG, PNG or WebP), 1 .txt"]),
        },
        Case {
            name: "a second picture of one name",
            files: "a.jpg a.webp a.txt",
            change: plain,
            right: Error(&["1 second picture of one name: a.webp"]),
        },
        Case {
            name: "a second picture of one name, by letter case",
            files: "a.jpg a.JPG a.txt",
            change: plain,
            right: Error(&["1 second picture of one name"]),
        },
        Case {
            name: "a caption without its picture",
            files: "a.jpg a.txt b.txt",
            change: plain,
            right: Error(&["1 caption without its photograph: b.txt", "pictures_missing"]),
        },
        Case {
            name: "a picture without its caption",
            files: "a.jpg a.txt b.jpg",
            change: plain,
            right: Error(&["1 photograph without a caption: b.jpg", "captions_missing"]),
        },
        Case {
            name: "the same, accepted: it is left out",
            files: "a.jpg a.txt b.jpg c.jpg c.txt",
            change: allow_all,
            right: Said(
                "a[a]0 c[c]0",
                &["3 photographs, 0 masks, 2 captions", "1 photograph without a caption: b.jpg"],
            ),
        },
        Case {
            name: "no captions at all",
            files: "a.jpg b.jpg",
            change: plain,
            right: Error(&["2 photographs without a caption: a.jpg, b.jpg;"]),
        },
        Case {
            name: "an orphan mask",
            files: "a.jpg a.txt b_mask.png",
            change: plain,
            right: Error(&["1 mask without its photograph: b_mask.png", "pictures_missing"]),
        },
        Case {
            name: "an orphan mask in a folder of masks",
            files: "images/a.jpg images/a.txt masks/a.png masks/b.png",
            change: plain,
            right: Error(&["1 mask without its photograph", "masks/b.png"]),
        },
        Case {
            name: "a photograph may be called a mask",
            files: "gas_mask.jpg gas_mask.txt death_mask.png death_mask.txt",
            change: plain,
            right: Samples("death_mask[death_mask]0 gas_mask[gas_mask]0"),
        },
        Case {
            name: "masks in two places",
            files: "a.jpg a.png a_mask.png a.txt",
            change: plain,
            right: Error(&["1 further mask of one picture: a_mask.png"]),
        },
        Case {
            name: "two captions of a picture",
            files: "a.jpg a.txt a.caption",
            change: plain,
            right: Error(&["1 second caption of one picture: a.caption"]),
        },
        Case {
            name: "annotations that are not read",
            files: "a.jpg a.txt a.json dataset.json README.md",
            change: plain,
            right: Error(&["1 JSON file beside a picture: a.json"]),
        },
        Case {
            name: "archives",
            files: "a.jpg a.txt more.7z=x more.zip=x",
            change: plain,
            right: Error(&["2 archives that are not read"]),
        },
        Case {
            name: "captions beside pictures and in a file",
            files: "a.jpg a.txt ../captions.json={\"a\":\"x\"}",
            change: captions,
            right: Said("a[x]0", &["1 caption file beside a picture, not read"]),
        },
        Case {
            name: "what lies around everywhere",
            files: "a.jpg a.txt ._a.jpg .DS_Store Thumbs.db desktop.ini __MACOSX/a.jpg .ipynb_checkpoints/a.jpg",
            change: plain,
            right: Said("a[a]0", &["1 photograph, 0 masks, 1 caption"]),
        },
        Case {
            name: "other files are said",
            files: "a.jpg a.txt README.md LICENSE notes.csv",
            change: plain,
            right: Said("a[a]0", &["3 files not read: 1 .csv, 1 .md, 1 without extension"]),
        },
        Case {
            name: "empty captions are counted",
            files: "a.jpg a.txt b.jpg b.txt=\\n",
            change: plain,
            right: Said("a[a]0 b[]0", &["1 empty caption: b.txt"]),
        },
        Case {
            name: "all captions empty",
            files: "a.jpg a.txt=\\n b.jpg b.txt=",
            change: plain,
            right: Error(&["all of its 2 captions are empty"]),
        },
        Case {
            name: "no photograph",
            files: "a.txt README.md",
            change: allow_all,
            right: Error(&["there is no photograph that can be read"]),
        },
        Case {
            name: "a captions file that lacks pictures and has others",
            files: "a.jpg b.jpg ../captions.json={\"a\":\"x\",\"c\":\"y\"}",
            change: captions,
            right: Error(&["1 photograph without a caption: b.jpg"]),
        },
        Case {
            name: "a captions file that covers more",
            files: "a.jpg ../captions.json={\"a\":\"x\",\"c\":\"y\",\"d\":\"z\"}",
            change: captions,
            right: Said("a[x]0", &["1 caption", "2 captions of pictures that are not here"]),
        },
    ]);
}

#[cfg(unix)]
#[test]
fn links_are_followed_to_files_and_named_otherwise() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("data");
    write(folder.path(), "data/a.jpg data/a.txt elsewhere/b.jpg elsewhere/b.txt");
    symlink("../elsewhere/b.jpg", root.join("b.jpg")).expect("link");
    symlink("../elsewhere/b.txt", root.join("b.txt")).expect("link");
    assert_eq!(outcome(&config(&root)).expect("samples").1, "a[a]0 b[b]0");

    symlink("../elsewhere", root.join("more")).expect("link");
    let error = outcome(&config(&root)).expect_err("a linked folder");
    assert!(error.contains("1 link to a folder: more"), "{error}");
    fs::remove_file(root.join("more")).expect("remove");
    symlink("../gone.jpg", root.join("c.jpg")).expect("link");
    let error = outcome(&config(&root)).expect_err("a dead link");
    assert!(error.contains("1 link that leads nowhere: c.jpg"), "{error}");
}

fn coco(config: &mut DataConfig, root: &Path) {
    config.format = DataFormat::Coco;
    config.source = vec![root.join("img").to_str().expect("path").into()];
    config.labels = Some(root.join("lab"));
    config.classes = Some(root.join("classes.json"));
}

#[test]
fn coco_pairs_pictures_with_label_maps() {
    use Right::{Error, Said, Samples};
    check(&[
        Case {
            name: "pictures in all formats, label maps in any letter case",
            files: "img/a.jpg img/b.webp img/c.TIFF lab/a.png lab/b.PNG lab/c.tif classes.json={\"5\":\"cat\",\"7\":\"dog\"}",
            change: coco,
            right: Said("a[cat_dog]2 b[cat_dog]2 c[cat_dog]2", &["3 photographs, 3 label maps"]),
        },
        Case {
            name: "a picture without a label map",
            files: "img/a.jpg img/b.jpg lab/a.png classes.json={\"5\":\"cat\",\"7\":\"dog\"}",
            change: coco,
            right: Error(&["1 photograph without a label map: b.jpg", "masks_missing"]),
        },
        Case {
            name: "the same, accepted",
            files: "img/a.jpg img/b.jpg lab/a.png classes.json={\"5\":\"cat\",\"7\":\"dog\"}",
            change: allow_all_coco,
            right: Samples("a[cat_dog]2"),
        },
        Case {
            name: "a label map without a picture",
            files: "img/a.jpg lab/a.png lab/b.png classes.json={\"5\":\"cat\",\"7\":\"dog\"}",
            change: coco,
            right: Error(&["1 mask without its photograph", "b.png"]),
        },
        Case {
            name: "the label maps lie inside the source",
            files: "images/a.jpg labels/a.png classes.json={\"5\":\"cat\",\"7\":\"dog\"}",
            change: |config, root| {
                coco(config, root);
                config.source = vec![root.to_str().expect("path").into()];
                config.labels = Some(root.join("labels"));
            },
            right: Samples("images/a[cat_dog]2"),
        },
        Case {
            name: "label maps as JPEG",
            files: "img/a.jpg lab/a.jpg classes.json={\"5\":\"cat\",\"7\":\"dog\"}",
            change: coco,
            right: Error(&["1 mask as JPEG", "1 photograph without a label map: a.jpg"]),
        },
        Case {
            name: "two pictures of one name",
            files: "img/a.jpg img/a.png lab/a.png classes.json={\"5\":\"cat\",\"7\":\"dog\"}",
            change: coco,
            right: Error(&["1 second picture of one name: a.png"]),
        },
    ]);
}

fn allow_all_coco(config: &mut DataConfig, root: &Path) {
    coco(config, root);
    config.allow = vec![Allowed::MasksMissing];
}

/// How many files an inventory has, by what they are: gaps and entries of other files are none.
fn counted(config: &DataConfig) -> u64 {
    const NO_FILES: [&str; 7] = [
        "caption_missing",
        "caption_unclear",
        "annotation_missing",
        "label_map_missing",
        "mask_missing",
        "blank_caption",
        "repeats_in_name",
    ];
    let data = DataSet::open(config).expect("data set");
    let inventory = serde_json::to_value(Inventory::of(&data).expect("inventory")).expect("JSON");
    let sources = inventory["sources"].as_array().expect("sources");
    let number = |value: &serde_json::Value| value.as_u64().expect("a number");
    let of_source = |source: &serde_json::Value| {
        let findings = source["findings"].as_object().expect("findings");
        let others = findings.iter().filter(|(kind, _)| !NO_FILES.contains(&kind.as_str()));
        let used = ["photographs", "masks", "captions"].iter().map(|kind| number(&source[kind]));
        used.sum::<u64>() + others.map(|(_, found)| number(&found["count"])).sum::<u64>()
    };
    sources.iter().map(of_source).sum()
}

#[test]
fn every_file_is_counted_once() {
    for (format, files) in [
        (
            DataFormat::Folder,
            "a.jpg a.png a.txt a.json a.npz b.jpg b.webp b.caption b.txt c.txt README.md notes.csv x.7z",
        ),
        (DataFormat::Folder, "a.jpg a_mask.png a_mask.tif a_mask.json a_mask.txt a_mask.heic a_mask.npz a.txt"),
        (DataFormat::Folder, "b_mask.png b_mask.tif b_mask.json b_mask.heic a.jpg a.txt"),
        (DataFormat::Folder, "a.jpg a.0.png a.1.png a.1.txt a.1.jpg a.txt b.0.png b.0.txt"),
        (DataFormat::Folder, "b.heic b.txt b.json c.avif c.caption a.jpg a.txt a.jxl"),
        (
            DataFormat::Folder,
            "images/a.jpg images/a.txt masks/a.png masks/a_mask.png masks/a.txt masks/b.png masks/b.heic masks/c.xml",
        ),
        (
            DataFormat::Folder,
            "images/in/a.jpg images/in/a.txt masks/in/a.jpg masks/in/a.png masks/a.png masks/in/s.tar",
        ),
        (
            DataFormat::Folder,
            "JPEGImages/a.jpg JPEGImages/a.txt SegmentationClass/a.png SegmentationObject/a.png Annotations/a.xml",
        ),
        (DataFormat::Sa1b, "a.jpg a.json a.txt b.jpg b.png b.json c.json d.heic d.json d.txt e.txt"),
        (DataFormat::Sa1b, "s.tar a.jpg a.json b.7z README.md"),
    ] {
        let folder = tempfile::tempdir().expect("folder");
        let root = folder.path().join("data");
        write(&root, files);
        let mut config = config(&root);
        config.format = format;
        let shards =
            files.split_whitespace().filter(|file| format == DataFormat::Sa1b && file.ends_with(".tar")).count();
        assert_eq!(counted(&config) as usize + shards, files.split_whitespace().count(), "{files}");
    }
}
