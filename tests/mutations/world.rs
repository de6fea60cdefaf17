//! A folder with a small valid file of every kind that the program reads.
use super::folder_copy::copy;
use super::limited::{run, seg4diff};
use super::original_files::{part, sd3_transformer, write_gguf, write_parts};
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use std::path::Path;

const TRAINING: &str = "device = \"cpu\"\noutput = \"run\"\n[model]\npath = \"model\"\nexpert_layer = 0\n\
                        [lora]\nrank = 2\nalpha = 2.0\n[optim]\nlr = 1e-3\nwarmup_steps = 1\n\
                        [train]\nsteps = 1\nbatch = 1\naccumulate = 1\n";

/// Fills `folder`.
///
/// # Panics
/// If a command that makes or reads the files fails, since mutations would then prove nothing.
pub fn make(folder: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fixtures = root.join("tests/fixtures");
    for (from, to) in [
        ("checkpoints/smoke-base", "model"),
        ("checkpoints/demo-features", "features"),
        ("data/smoke", "data"),
        ("tests/fixtures/pipeline/pipeline", "t5"),
        ("tests/fixtures/clip/model", "clip"),
        ("tests/fixtures/clip/images", "clip_images"),
    ] {
        copy(&root.join(from), &folder.join(to));
    }
    let write = |name: &str, content: &[u8]| {
        let file = folder.join(name);
        std::fs::create_dir_all(file.parent().expect("parent")).expect("folder");
        std::fs::write(file, content).expect("write");
    };
    let data = "[data]\nresolution = 32\nsource = [\"data/sa_000000.tar\"]\ncaptions = \"data/captions.json\"\n\
                workers = 1\nshuffle_buffer = 4\nmax_broken = 0.5\n";
    write("c.toml", format!("seed = 3\n{TRAINING}{data}").as_bytes());
    let coco = "[data]\nformat = \"coco\"\nresolution = 32\nsource = [\"coco\"]\nlabels = \"segments\"\n\
                panoptic = \"panoptic.json\"\nclasses = \"classes.json\"\nworkers = 1\n\
                allow = [\"class_names\"]\n";
    write("coco.toml", format!("{TRAINING}{coco}").as_bytes());
    let plain = "[data]\nformat = \"folder\"\nresolution = 32\nsource = [\"folder\"]\nworkers = 1\n";
    write("folder.toml", format!("{TRAINING}{plain}").as_bytes());
    let parquet = plain.replace(
        "[\"folder\"]",
        "[\"parquet\"]\ncaptions = \"captions.parquet\"\ncaption_key_column = \"image\"\nallow = [\"masks_unused\"]",
    );
    write("parquet.toml", format!("{TRAINING}{parquet}").as_bytes());
    let t5 = TRAINING
        .replace("path = \"model\"", "path = \"t5\"\ntext_encoders = [\"clip_l\", \"t5\"]\nmax_sequence_length = 16");
    write("t5.toml", format!("{t5}{data}").as_bytes());
    // The command that fills a cache checks that the transformer exists, and does not read it.
    write("t5/transformer/diffusion_pytorch_model.safetensors", b"\x02\0\0\0\0\0\0\0{}");
    pictures(&write);

    let names = "[\"a\", \"b\", \"c\", \"d\"]";
    write(
        "classes.json",
        format!("{{\"0\": \"nothing\", \"1\": \"cat\", \"2\": \"dog\", \"3\": {:?}}}", names).as_bytes(),
    );
    let segments = r#""segments_info": [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 2}]"#;
    let annotations = format!(r#"[{{"file_name": "a.png", "image_id": 1, {segments}}}]"#);
    let categories = r#"[{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]"#;
    let panoptic = format!(r#"{{"images": [{{"id": 1}}], "annotations": {annotations}, "categories": {categories}}}"#);
    write("panoptic.json", panoptic.as_bytes());
    let captions = std::fs::read(root.join("data/smoke/captions.json")).expect("captions");
    let captions: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&captions).expect("captions");
    let line = |(key, caption)| format!("{}\n", serde_json::json!({"key": key, "caption": caption}));
    write("captions.jsonl", captions.iter().map(line).collect::<String>().as_bytes());
    write("captions.parquet", &std::fs::read(fixtures.join("data/captions.parquet")).expect("Parquet"));
    write("mat/a.mat", &std::fs::read(fixtures.join("matlab/u16.mat")).expect("MATLAB"));
    write("clip_captions.json", &std::fs::read(fixtures.join("clip/captions.json")).expect("captions"));
    let phrase = |phrase: &str, counts: &str| {
        format!(r#"{{"image": "a.jpg", "phrase": "{phrase}", "mask": {{"size": [40, 48], "counts": {counts}}}}}"#)
    };
    let other = r#"{"image": "b.jpg", "phrase": "dog", "mask": {"size": [40, 48], "counts": [0, 1920]}}"#;
    let lines = [phrase("cat", "[500, 700, 720]"), phrase("a dog", "[0, 40, 1880]"), other.to_string()];
    write("phrases.jsonl", (lines.join("\n") + "\n").as_bytes());
    let set = "name = \"Set\"\nlist = \"list.txt\"\nclasses = \"classes.json\"\nignore = [255]\nignore_others = true\n\
               [images]\nfolder = \"pictures\"\nsuffix = \".jpg\"\n[labels]\nfolder = \"labels\"\nsuffix = \".png\"\n\
               [[merge]]\nlabels = [7]\ninto = 1\n";
    write("set.toml", set.as_bytes());
    write("list.txt", b"a 1\nb 1\n");
    shard_weights(folder, &write);
    let transformer = sd3_transformer(&part(&folder.join("model/transformer")));
    write_parts(&folder.join("one.safetensors"), &[("", &transformer)]);
    write_gguf(&folder.join("one.gguf"), &transformer);

    let command = |args: &str| {
        let ended = run(seg4diff(folder).args(args.split_whitespace()), 120);
        assert_eq!(ended.status, Some(0), "{args}: {}", ended.said);
    };
    command("prepare cache --config c.toml --out cache");
    command("train --config c.toml --set output=run1 --set train.steps=2 --set checkpoint.every=1");
    std::fs::copy(folder.join("run1/lora.safetensors"), folder.join("lora.safetensors")).expect("adapter");
    let resumed = folder.join("run1");
    // The state of a run that was stopped early.
    for name in ["lora.safetensors", "report.html"] {
        std::fs::remove_file(resumed.join(name)).expect("remove");
    }
    std::fs::remove_dir_all(resumed.join("checkpoints/step-000002")).expect("remove");
    for kind in super::kinds::KINDS {
        super::tidy(folder, kind);
        command(kind.args);
    }
}

/// Pictures and label maps of 48 × 40 pixels.
fn pictures(write: &dyn Fn(&str, &[u8])) {
    let (width, height) = (48u32, 40u32);
    let pixel = |x: u32, y: u32| [(x * 5) as u8, (y * 6) as u8, (x * y) as u8];
    let pixels: Vec<u8> = (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y))).collect();
    let mut png = Vec::new();
    PngEncoder::new(&mut png).write_image(&pixels, width, height, ExtendedColorType::Rgb8).expect("PNG");
    let mut jpeg = Vec::new();
    let encoder = image::codecs::jpeg::JpegEncoder::new(&mut jpeg);
    encoder.write_image(&pixels, width, height, ExtendedColorType::Rgb8).expect("JPEG");
    let labels: Vec<u32> = (0..height * width).map(|at| at % width / 16).collect();
    let map = seg4diff::data::codec::labels::encode_labels(width as usize, height as usize, &labels).expect("map");
    for name in [
        "pictures/a.jpg",
        "pictures/b.jpg",
        "others/a.jpg",
        "folder/a.jpg",
        "parquet/sa_39.jpg",
        "coco/a.jpg",
        "jpegs/a.jpg",
    ] {
        write(name, &jpeg);
    }
    for name in ["pictures/c.png", "others/c.png", "jpegs/c.png"] {
        write(name, &png);
    }
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jpeg");
    write("jpegs/b.jpg", &std::fs::read(fixtures.join("420-progressive.jpg")).expect("JPEG"));
    let fixtures = fixtures.with_file_name("pictures");
    for (name, fixture) in [
        ("d.webp", "lossy-80.webp"),
        ("e.tif", "rgb-lzw.tiff"),
        ("f.gif", "transparent.gif"),
        ("g.bmp", "palette.bmp"),
        ("h.jpg", "orientation-6.jpg"),
    ] {
        write(&format!("jpegs/{name}"), &std::fs::read(fixtures.join(fixture)).expect("picture"));
    }
    for name in ["labels/a.png", "labels/b.png", "labels/c.png", "folder/a.png"] {
        write(name, &map);
    }
    write("folder/a.txt", b"A cat and a dog.");
    let rgb: Vec<u8> = labels.iter().flat_map(|label| [*label as u8, 0, 0]).collect();
    let mut segments = Vec::new();
    PngEncoder::new(&mut segments).write_image(&rgb, width, height, ExtendedColorType::Rgb8).expect("PNG");
    write("segments/a.png", &segments);
}

/// The second text encoder's weights as one shard with its index.
fn shard_weights(folder: &Path, write: &dyn Fn(&str, &[u8])) {
    let part = folder.join("model/text_encoder_2");
    let names = seg4diff::model::weights::read_all(&part.join("model.safetensors")).expect("weights");
    std::fs::rename(part.join("model.safetensors"), part.join("model-1.safetensors")).expect("rename");
    let map: serde_json::Map<String, serde_json::Value> =
        names.keys().map(|name| (name.clone(), "model-1.safetensors".into())).collect();
    let index = serde_json::json!({"metadata": {"total_size": 1000}, "weight_map": map});
    write("model/text_encoder_2/model.safetensors.index.json", index.to_string().as_bytes());
}
