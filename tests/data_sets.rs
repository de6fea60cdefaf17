//! The data sets described in `configs/eval`, on small generated files of their layouts.
use image::{ImageFormat, RgbImage};
use seg4diff::data::codec::labels::encode_labels;
use seg4diff::eval::segmentation::{LabelledFolder, NO_CLASS, SegmentationDataSet};
use std::path::{Path, PathBuf};

const WIDTH: usize = 4;

/// An unpacked data set: its description, one image with its label map, and other files beside them.
struct Unpacked {
    config: &'static str,
    image: &'static str,
    labels: &'static str,
    /// Path and text of the list of images.
    list: Option<(&'static str, &'static str)>,
    /// Labels in the file, and the class name of each; `None` for labels that do not count.
    pixels: &'static [(u32, Option<&'static str>)],
    classes: usize,
}

const VOC_LIST: Option<(&str, &str)> = Some(("ImageSets/Segmentation/val.txt", "2007_000033\n"));

const UNPACKED: &[Unpacked] = &[
    Unpacked {
        config: "voc20",
        image: "JPEGImages/2007_000033.jpg",
        labels: "SegmentationClass/2007_000033.png",
        list: VOC_LIST,
        pixels: &[(0, None), (255, None), (1, Some("aeroplane")), (20, Some("tvmonitor"))],
        classes: 20,
    },
    Unpacked {
        config: "voc21",
        image: "JPEGImages/2007_000033.jpg",
        labels: "SegmentationClass/2007_000033.png",
        list: VOC_LIST,
        pixels: &[(0, Some("background")), (255, None), (15, Some("person")), (20, Some("tvmonitor"))],
        classes: 21,
    },
    Unpacked {
        config: "pascal-context59",
        image: "JPEGImages/2008_000002.jpg",
        labels: "SegmentationContext459/2008_000002.png",
        list: Some(("ImageSets/Main/val.txt", "2008_000002\n")),
        pixels: &[(2, Some("aeroplane")), (1, None), (415, Some("track")), (458, Some("wood"))],
        classes: 59,
    },
    Unpacked {
        config: "pascal-context60",
        image: "JPEGImages/2008_000002.jpg",
        labels: "SegmentationContext459/2008_000002.png",
        list: Some(("ImageSets/Main/val.txt", "2008_000002\n")),
        // The other 400 classes, and pixels without label, are background.
        pixels: &[(0, Some("background")), (1, Some("background")), (397, Some("diningtable")), (2, Some("aeroplane"))],
        classes: 60,
    },
    Unpacked {
        config: "pascal-context459",
        image: "JPEGImages/2008_000002.jpg",
        labels: "SegmentationContext459/2008_000002.png",
        list: Some(("ImageSets/Main/val.txt", "2008_000002\n")),
        pixels: &[(0, None), (1, Some("accordion")), (459, Some("wool")), (460, None)],
        classes: 459,
    },
    Unpacked {
        config: "ade20k-847",
        image: "images/ADE/validation/urban/street/ADE_val_00000001.jpg",
        labels: "annotations847/validation/urban/street/ADE_val_00000001.png",
        list: None,
        pixels: &[
            (0, Some("wall")),
            (65535, None),
            (256, Some("shanties")),
            (846, Some("adding machine, totalizer, totaliser")),
        ],
        classes: 847,
    },
    Unpacked {
        config: "coco-object",
        image: "val2017/000000000139.jpg",
        labels: "stuffthingmaps/val2017/000000000139.png",
        list: None,
        pixels: &[(0, Some("person")), (12, Some("stop sign")), (181, Some("background")), (255, Some("background"))],
        classes: 81,
    },
    Unpacked {
        config: "coco-stuff171",
        image: "val2017/000000000139.jpg",
        labels: "stuffthingmaps/val2017/000000000139.png",
        list: None,
        pixels: &[(89, Some("toothbrush")), (91, Some("banner")), (181, Some("wood")), (255, None)],
        classes: 171,
    },
    Unpacked {
        config: "coco-stuff27",
        image: "val2017/000000000139.jpg",
        labels: "stuffthingmaps/val2017/000000000139.png",
        list: None,
        // A merged label may equal another class's number: 0 is a person, not an electronic device.
        pixels: &[(0, Some("person")), (9, Some("outdoor")), (181, Some("solid")), (255, None)],
        classes: 27,
    },
    Unpacked {
        config: "ade20k",
        image: "images/validation/ADE_val_00000001.jpg",
        labels: "annotations/validation/ADE_val_00000001.png",
        list: None,
        pixels: &[(0, None), (1, Some("wall")), (2, Some("building")), (150, Some("flag"))],
        classes: 150,
    },
    Unpacked {
        config: "cityscapes",
        image: "leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png",
        labels: "gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png",
        list: None,
        pixels: &[(7, Some("road")), (0, None), (255, None), (33, Some("bicycle"))],
        classes: 19,
    },
];

fn config(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("configs/eval/{name}.toml"))
}

fn put(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn put_picture(path: &Path, picture: &RgbImage, format: ImageFormat) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    picture.save_with_format(path, format).unwrap();
}

fn black(height: usize) -> RgbImage {
    RgbImage::new(WIDTH as u32, height as u32)
}

impl Unpacked {
    fn make(&self) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        put_picture(&at(self.image), &black(1), ImageFormat::from_path(self.image).unwrap());
        let labels: Vec<u32> = self.pixels.iter().map(|(label, _)| *label).collect();
        put(&at(self.labels), &encode_labels(WIDTH, 1, &labels).unwrap());
        if let Some((list, text)) = self.list {
            put(&at(list), text.as_bytes());
            // Images outside the list need no label map.
            put_picture(&at("JPEGImages/2000_000000.jpg"), &black(1), ImageFormat::Jpeg);
        }
        // Other files beside the label maps.
        if self.config == "cityscapes" {
            for other in ["color", "instanceIds"] {
                put(&at(&self.labels.replace("labelIds", other)), b"no label map");
            }
        }
        folder
    }

    fn open(&self, root: &Path) -> seg4diff::system::error::Result<LabelledFolder> {
        LabelledFolder::of(&SegmentationDataSet::read(&config(self.config), root)?)
    }
}

/// Class names of the first image's pixels.
fn names(data: &LabelledFolder) -> Vec<Option<String>> {
    let name = |class: &u16| (*class != NO_CLASS).then(|| data.classes[usize::from(*class)].name.clone());
    data.read(0).unwrap().truth.classes.iter().map(name).collect()
}

#[test]
fn every_layout_is_read_with_its_traps() {
    for unpacked in UNPACKED {
        let folder = unpacked.make();
        let data = unpacked.open(folder.path()).unwrap_or_else(|e| panic!("{}: {e}", unpacked.config));
        assert_eq!((data.count(), data.classes.len()), (1, unpacked.classes), "{}", unpacked.config);
        let expected: Vec<_> = unpacked.pixels.iter().map(|(_, name)| name.map(str::to_owned)).collect();
        assert_eq!(names(&data), expected, "{}", unpacked.config);
    }
    let described = std::fs::read_dir(config("x").parent().unwrap()).unwrap().count();
    assert_eq!(described, UNPACKED.len() + 1, "all but COCO panoptic, which follows");
}

#[test]
fn coco_panoptic_is_read_through_its_annotations() {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    put_picture(&at("val2017/000000000139.jpg"), &black(1), ImageFormat::Jpeg);
    let mut segments = black(1);
    for (pixel, id) in segments.pixels_mut().zip([0u32, 3_226_956, 6_979_964, 1]) {
        let [r, g, b, _] = id.to_le_bytes();
        *pixel = image::Rgb([r, g, b]);
    }
    put_picture(&at("annotations/panoptic_val2017/000000000139.png"), &segments, ImageFormat::Png);
    let annotations = |last: u32| {
        serde_json::json!({
            "annotations": [{"image_id": 139, "file_name": "000000000139.png", "segments_info": [
                {"id": 3_226_956, "category_id": 72}, {"id": 6_979_964, "category_id": 200}, {"id": last, "category_id": 1},
            ]}],
            "categories": [
                {"id": 1, "name": "person"}, {"id": 72, "name": "tv"}, {"id": 200, "name": "rug-merged"},
            ],
        })
    };
    let write = |last| put(&at("annotations/panoptic_val2017.json"), annotations(last).to_string().as_bytes());
    let open = || LabelledFolder::of(&SegmentationDataSet::read(&config("coco-panoptic"), folder.path()).unwrap());
    write(1);
    let expected = [None, Some("tv"), Some("rug-merged"), Some("person")];
    assert_eq!(names(&open().unwrap()), expected.map(|name| name.map(str::to_owned)));
    write(2);
    let problem = open().unwrap().read(0).unwrap_err().to_string();
    assert!(problem.contains("label 1 at x 3, y 0 is no segment"), "{problem}");
    std::fs::remove_file(at("annotations/panoptic_val2017.json")).unwrap();
    let problem = open().err().unwrap().to_string();
    assert!(problem.contains("panoptic_val2017.json") && problem.contains("--root"), "{problem}");
}

#[test]
fn a_wrong_folder_is_told_what_was_expected() {
    for unpacked in UNPACKED {
        let folder = unpacked.make();
        let top = |path: &str| folder.path().join(path.split('/').next().unwrap());
        let fails = |wanted: &[&str]| {
            let problem = unpacked.open(folder.path()).err().unwrap().to_string();
            for wanted in wanted {
                assert!(problem.contains(wanted), "{}: {problem}", unpacked.config);
            }
        };
        let labels = unpacked
            .labels
            .rsplit_once('/')
            .unwrap()
            .0
            .trim_end_matches("/frankfurt")
            .trim_end_matches("/urban/street");
        std::fs::rename(top(labels), folder.path().join("elsewhere")).unwrap();
        fails(&[labels, "label maps (*", "--root"]);
        std::fs::create_dir_all(folder.path().join(labels)).unwrap();
        fails(&[labels, "holds no *"]);
        if let Some((list, _)) = unpacked.list {
            put(&folder.path().join(labels).join("other.png"), b"");
            fails(&[unpacked.image, "has no label map"]);
            put(&folder.path().join(list), b"\nnothing_there\n");
            fails(&[list, "line 2: the image nothing_there"]);
            std::fs::remove_file(folder.path().join(list)).unwrap();
            fails(&[list, "a list of images", "--root"]);
        }
        std::fs::remove_dir_all(top(unpacked.image)).unwrap();
        fails(&[unpacked.image.split('/').next().unwrap(), "images (*", "--root"]);
    }
}

#[test]
fn a_description_with_a_mistake_names_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("set.toml");
    let files = "[images]\nfolder = \"i\"\nsuffix = \".jpg\"\n[labels]\nfolder = \"l\"\nsuffix = \".png\"\n";
    for (text, expected) in [
        (format!("name = \"x\"\nclass = \"c.json\"\n{files}"), "line 2: unknown field `class`"),
        (format!("name = 3\n{files}"), "line 1: "),
        (format!("name = \"x\"\n{files}"), "neither classes nor panoptic"),
        (
            format!(
                "name = \"x\"\nclasses = \"c\"\n{files}[[merge]]\ninto=1\nlabels=[5]\n[[merge]]\ninto=2\nlabels=[5]\n"
            ),
            "label 5 is merged into both 1 and 2",
        ),
        (
            format!("name = \"x\"\nclasses = \"c\"\nignore_others = true\nothers = 0\n{files}"),
            "both ignore_others and others",
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let problem = SegmentationDataSet::read(&file, folder.path()).unwrap_err().to_string();
        assert!(problem.contains("set.toml") && problem.contains(expected), "{problem}");
    }
}

/// The full ADE20K release: colours beside the photographs, and subfolders of parts and instances, which are ignored.
#[test]
fn labels_of_the_full_ade20k_are_written_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    let (scene, numbers) = ("ADE/validation/urban/street", "numbers.json");
    std::fs::write(at(numbers), "[2978, 312, 6, 3148]").unwrap();
    // A pixel's number is red / 10 · 256 + green; blue counts instances.
    let colour =
        |number: u32, odd: u8, blue: u8| image::Rgb([(number / 256 * 10) as u8 + odd, (number % 256) as u8, blue]);
    let pixels = [
        colour(2978, 0, 7),
        colour(312, 9, 255),
        colour(6, 3, 1),
        colour(3148, 0, 0),
        colour(0, 0, 0),
        colour(2977, 0, 0),
    ];
    let colours = RgbImage::from_fn(3, 2, |x, y| pixels[(3 * y + x) as usize]);
    put_picture(&at(&format!("{scene}/ADE_val_00000001_seg.png")), &colours, ImageFormat::Png);
    put_picture(&at(&format!("{scene}/ADE_val_00000001.jpg")), &RgbImage::new(3, 2), ImageFormat::Jpeg);
    put_picture(&at(&format!("{scene}/ADE_val_00000001_parts_1.png")), &black(1), ImageFormat::Png);
    put_picture(
        &at(&format!("{scene}/ADE_val_00000001/instance_000_ADE_val_00000001.png")),
        &black(1),
        ImageFormat::Png,
    );
    let prepare = |numbers: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_seg4diff"));
        let flags = ["prepare", "labels", "--ade20k", "ADE/validation", "--numbers", numbers, "--out", "labels"];
        let output = command.args(flags).current_dir(folder.path()).output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let (status, said) = prepare(numbers);
    assert!(status == Some(0) && said.contains("labels: 1 label maps"), "{said}");
    let out = at("labels/urban/street/ADE_val_00000001.png");
    let map = seg4diff::data::LabelMap::decode(&std::fs::read(&out).unwrap()).unwrap();
    let found: Vec<u32> = (0..6).map(|pixel| map.get(pixel % 3, pixel / 3)).collect();
    assert_eq!((map.width, map.height, found), (3, 2, vec![0, 1, 2, 3, 65535, 65535]));

    std::fs::remove_file(&out).unwrap();
    for (text, problem) in
        [("[1, 2, 1]", "number 1 twice"), ("[]", "0 numbers"), ("{}", "JSON list"), ("[-1]", "JSON list")]
    {
        std::fs::write(at("wrong.json"), text).unwrap();
        let (status, said) = prepare("wrong.json");
        assert!(status == Some(1) && said.contains("wrong.json") && said.contains(problem), "{said}");
    }
    let grey = image::GrayImage::new(3, 2);
    grey.save(at(&format!("{scene}/ADE_val_00000002_seg.png"))).unwrap();
    let (status, said) = prepare(numbers);
    assert!(status == Some(1) && said.contains("ADE_val_00000002_seg.png") && said.contains("grey PNG"), "{said}");
}

/// ADE20K's class numbers and names match one by one.
#[test]
fn every_class_of_ade20k_has_a_number() {
    let folder = config("x").with_file_name("../../data/classes");
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap()
    };
    let (names, numbers) = (read("ade20k-847.json"), read("ade20k-847-numbers.json"));
    assert_eq!((names.as_array().unwrap().len(), numbers.as_array().unwrap().len()), (847, 847));
    assert_eq!((&names[1], &numbers[1]), (&"building, edifice".into(), &312.into()));
    assert_eq!((&names[846], &numbers[846]), (&"adding machine, totalizer, totaliser".into(), &3148.into()));
}
