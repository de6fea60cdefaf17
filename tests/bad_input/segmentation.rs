//! Broken images, label maps and class lists of `evaluate segmentation`.
use super::model_folder;
use super::world::{Case, World, cut, nothing, try_all};
use candle_core::{DType, Device, Tensor};
use seg4diff::model::weights::write;
use std::collections::BTreeMap;
use std::path::Path;

/// The arguments of every call.
const COMMON: [&str; 14] = [
    "evaluate",
    "segmentation",
    "--model",
    "model",
    "--images",
    "images",
    "--labels",
    "labels",
    "--classes",
    "classes.json",
    "--layer",
    "1",
    "--size",
    "64",
];

const PLAIN: &[&str] = &COMMON;

/// The call with two more arguments.
const fn with(first: &'static str, second: &'static str) -> [&'static str; 16] {
    let mut all = [""; 16];
    let mut i = 0;
    while i < COMMON.len() {
        all[i] = COMMON[i];
        i += 1;
    }
    all[14] = first;
    all[15] = second;
    all
}

/// The call with another value for one of its flags.
const fn other(place: usize, value: &'static str) -> [&'static str; 14] {
    let mut all = COMMON;
    all[place] = value;
    all
}

/// The smoke run's model and the data set of the fixture.
fn data_set() -> World {
    let world = World::whole();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/segmentation");
    for folder in ["images", "labels"] {
        model_folder::copy(&fixture.join(folder), &world.path(folder));
    }
    std::fs::copy(fixture.join("classes.json"), world.path("classes.json")).expect("copy");
    world
}

fn noise(world: &World, key: &str, shape: &[usize]) {
    let tensor = Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("tensor");
    write(&world.path("n.safetensors"), &BTreeMap::from([(key.to_string(), tensor)]), &BTreeMap::new()).expect("write");
}

const DATA: &[Case] = &[
    ("no images", nothing, &other(5, "gone"), 1, &["gone", "No such file"]),
    ("no label maps", nothing, &other(7, "gone"), 1, &["gone", "No such file"]),
    ("a folder without images", nothing, &other(5, "model/vae"), 1, &["model/vae", "holds no *.jpg, *.jpeg, "]),
    ("an image for a folder", nothing, &other(5, "classes.json"), 1, &["classes.json", "Not a directory"]),
    (
        "missing label map",
        |w| w.remove("labels/b/street.png"),
        PLAIN,
        1,
        &["images/b/street.png", "labels/b/street.png"],
    ),
    (
        "two images of one name",
        |w| w.write("images/wide.png", ""),
        PLAIN,
        1,
        &["images/wide.", "same name", "extension"],
    ),
    (
        "label map of another image",
        |w| {
            std::fs::copy(w.path("labels/tiny.png"), w.path("labels/wide.png")).expect("copy");
        },
        PLAIN,
        1,
        &["labels/wide.png", "5×9", "images/wide.jpg", "150×61"],
    ),
    ("label map cut short", |w| cut(w, "labels/wide.png"), PLAIN, 1, &["labels/wide.png", "no readable PNG"]),
    (
        "label map that is a JPEG",
        |w| {
            std::fs::copy(w.path("images/wide.jpg"), w.path("labels/wide.png")).expect("copy");
        },
        PLAIN,
        1,
        &["labels/wide.png", "no readable PNG"],
    ),
    ("image cut short", |w| cut(w, "images/zebra.png"), PLAIN, 1, &["images/zebra.png", "no readable image"]),
    ("image that is empty", |w| w.write("images/tiny.png", ""), PLAIN, 1, &["images/tiny.png"]),
    (
        "label without a name",
        nothing,
        &with("--ignore", "254"),
        1,
        &["labels/", "label 255 at x ", "classes.json", "--ignore"],
    ),
    (
        "nothing counts",
        |w| {
            for folder in ["images", "labels"] {
                for name in ["a square", "tall.v2", "tiny", "wide", "zebra", "b/street"] {
                    for extension in ["png", "jpg"] {
                        let _ = std::fs::remove_file(w.path(&format!("{folder}/{name}.{extension}")));
                    }
                }
            }
        },
        PLAIN,
        1,
        &["no pixel", "ignored"],
    ),
];

const CLASSES: &[Case] = &[
    ("no classes", nothing, &other(9, "gone.json"), 1, &["gone.json", "No such file"]),
    ("classes that are no JSON", |w| w.write("classes.json", "a, b"), PLAIN, 1, &["classes.json", "line 1"]),
    ("classes that are a number", |w| w.write("classes.json", "3"), PLAIN, 1, &["classes.json", "list of names"]),
    ("no class", |w| w.write("classes.json", "[]"), PLAIN, 1, &["classes.json", "no class"]),
    (
        "label that is no number",
        |w| w.write("classes.json", "{\"one\": \"cat\"}"),
        PLAIN,
        1,
        &["classes.json", "`one` is no number"],
    ),
    ("name that is no text", |w| w.write("classes.json", "[\"cat\", 7]"), PLAIN, 1, &["classes.json", "label 1"]),
    (
        "one name for two labels",
        |w| w.replace("classes.json", "\"grass\"", "\"water\""),
        PLAIN,
        1,
        &["classes.json", "labels 6 and 8", "\"water\""],
    ),
    (
        "a name that no prompt holds",
        |w| w.replace("classes.json", "\"grass\"", &format!("\"{}\"", "red ".repeat(76))),
        PLAIN,
        1,
        &["classes.json", "label 6", "red red", "76 tokens", "1 to 75"],
    ),
    (
        "every class ignored",
        |w| w.write("classes.json", "[\"cat\"]"),
        &with("--ignore", "0,255"),
        1,
        &["classes.json", "every class is ignored"],
    ),
];

const OPTIONS: &[Case] = &[
    ("no such block", nothing, &other(11, "3"), 2, &["--layer 3", "3 blocks"]),
    ("size of half a token", nothing, &other(13, "72"), 2, &["--size", "multiple of 16"]),
    ("size beyond the model's positions", nothing, &other(13, "512"), 2, &["512 pixels", "at most 256"]),
    ("unknown protocol", nothing, &with("--protocol", "al"), 2, &["--protocol", "\"present\" or \"all\""]),
    ("time step beyond the schedule", nothing, &with("--timestep", "-29"), 2, &["time step -29", "28 steps"]),
    ("noise share above one", nothing, &with("--sigma", "1.5"), 2, &["--sigma", "0 to 1"]),
    ("no images wanted", nothing, &with("--limit", "0"), 2, &["--limit"]),
    ("no batch", nothing, &with("--batch", "0"), 2, &["--batch"]),
    ("label that is none", nothing, &with("--ignore", "void"), 2, &["--ignore", "void"]),
    ("no noise file", nothing, &with("--noise", "n.safetensors"), 1, &["n.safetensors", "No such file"]),
    (
        "noise of another size",
        |w| noise(w, "noise", &[1, 16, 4, 8]),
        &with("--noise", "n.safetensors"),
        1,
        &["n.safetensors", "[1, 16, 4, 8]", "[1, 16, 8, 8]"],
    ),
    (
        "noise under another name",
        |w| noise(w, "latents", &[1, 16, 8, 8]),
        &with("--noise", "n.safetensors"),
        1,
        &["n.safetensors", "\"noise\"", "latents"],
    ),
    (
        "scores where a file is a folder",
        nothing,
        &with("--json", "classes.json/s.json"),
        1,
        &["classes.json/s.json", "cannot write"],
    ),
    ("scores that are a folder", nothing, &with("--json", "images"), 1, &["images", "cannot write", "folder"]),
    (
        "predictions that are a file",
        nothing,
        &with("--predictions", "classes.json"),
        1,
        &["classes.json", "cannot write"],
    ),
    (
        "a model that has broken",
        |w| {
            w.edit_tensors("model/transformer/diffusion_pytorch_model.safetensors", |tensors| {
                let name = "transformer_blocks.1.attn.to_q.bias";
                // Finite when stored, but not in computation.
                let broken = (tensors[name].ones_like().expect("ones") * f64::from(f32::MAX)).expect("large");
                tensors.insert(name.into(), broken);
            })
        },
        PLAIN,
        1,
        &["block 1", "a square", "not finite"],
    ),
];

#[test]
fn data_sets() {
    try_all(data_set, DATA);
}

#[test]
fn class_lists() {
    try_all(data_set, CLASSES);
}

#[test]
fn options() {
    try_all(data_set, OPTIONS);
}

/// The data set that the cases above spoil works.
#[test]
fn a_good_data_set_is_evaluated() {
    let world = data_set();
    let output = world.command(PLAIN).output().expect("seg4diff");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("mIoU"));
}
