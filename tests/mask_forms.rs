//! Masks beside pictures: black and white, labels, colours, in every lossless format; and runs whose masks do nothing.
mod data_config;

use data_config::plain;
use image::{DynamicImage, GrayImage, ImageFormat, Luma, LumaA, Rgb, RgbImage, Rgba};
use seg4diff::config::{DataConfig, DataFormat, MaskForm, Palette};
use seg4diff::data::Loader;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;

const SIDE: u32 = 64;

fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let file = folder.join(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, content).unwrap();
    file
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn photograph(number: u32) -> Vec<u8> {
    let picture = RgbImage::from_fn(SIDE, SIDE, |x, y| Rgb([(x * 3) as u8, (y * 3) as u8, (number * 5) as u8]));
    encoded(picture, ImageFormat::Jpeg)
}

/// Whether a pixel is in the mask: an off-centre rectangle.
fn inside(x: u32, y: u32) -> bool {
    (8..40).contains(&x) && (16..48).contains(&y)
}

fn grey(values: [u8; 2]) -> GrayImage {
    GrayImage::from_fn(SIDE, SIDE, |x, y| Luma([values[usize::from(inside(x, y))]]))
}

/// An indexed or 1-bit PNG with the rectangle as index 1.
fn indexed(bits: png::BitDepth, palette: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, SIDE, SIDE);
    encoder.set_depth(bits);
    match palette {
        Some(palette) => {
            encoder.set_color(png::ColorType::Indexed);
            encoder.set_palette(palette.to_vec());
        }
        None => encoder.set_color(png::ColorType::Grayscale),
    }
    let pixels = (0..SIDE).flat_map(|y| (0..SIDE).map(move |x| u8::from(inside(x, y))));
    let pixels: Vec<u8> = match bits {
        png::BitDepth::One => {
            let pixels: Vec<u8> = pixels.collect();
            pixels.chunks(8).map(|eight| eight.iter().fold(0, |byte, bit| byte << 1 | bit)).collect()
        }
        _ => pixels.collect(),
    };
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    bytes
}

fn config(source: &Path) -> DataConfig {
    DataConfig { resolution: SIDE as usize, workers: 1, ..plain(DataFormat::Folder, &[source]) }
}

/// The areas of the masks of one picture with this map, or the error.
fn areas(map: &[u8], change: impl Fn(&mut DataConfig)) -> Result<Vec<usize>, String> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "p.jpg", photograph(1));
    write(folder.path(), "p.txt", "a cat");
    write(folder.path(), "p.png", map);
    let mut config = config(folder.path());
    change(&mut config);
    let batch = Loader::new(&config, 0, None, false).and_then(|mut loader| loader.next_batch(1));
    batch
        .map(|batch| batch.samples[0].masks.iter().map(|mask| mask.area()).collect())
        .map_err(|error| error.to_string())
}

const AREA: usize = 32 * 32;
const REST: usize = (SIDE * SIDE) as usize - AREA;

#[test]
fn black_and_white_means_one_mask_in_every_form() {
    let soft = GrayImage::from_fn(SIDE, SIDE, |x, y| {
        // From 8 on white, over four columns of grey before that.
        let edge = if (16..48).contains(&y) && (4..40).contains(&x) { (x - 3).min(5) * 50 } else { 0 };
        let level = (edge + if edge > 0 { y % 7 } else { 0 }).min(255);
        Luma([if edge == 250 { 255 } else { level as u8 }])
    });
    let rgb = |values: [u8; 2]| RgbImage::from_fn(SIDE, SIDE, |x, y| Rgb([values[usize::from(inside(x, y))]; 3]));
    let rgba = image::RgbaImage::from_fn(SIDE, SIDE, |x, y| {
        let value = if inside(x, y) { 255 } else { 0 };
        Rgba([value, value, value, 255])
    });
    let grey_alpha =
        image::GrayAlphaImage::from_fn(SIDE, SIDE, |x, y| LumaA([if inside(x, y) { 255 } else { 0 }, 255]));
    let deep: image::ImageBuffer<Luma<u16>, Vec<u16>> =
        image::ImageBuffer::from_fn(SIDE, SIDE, |x, y| Luma([if inside(x, y) { 65535 } else { 0 }]));
    for (name, map) in [
        ("0/255", encoded(grey([0, 255]), ImageFormat::Png)),
        ("0/1", encoded(grey([0, 1]), ImageFormat::Png)),
        ("1 bit", indexed(png::BitDepth::One, None)),
        ("1 bit of black and white", indexed(png::BitDepth::One, Some(&[0, 0, 0, 255, 255, 255]))),
        ("rgb", encoded(rgb([0, 255]), ImageFormat::Png)),
        ("rgba", encoded(rgba, ImageFormat::Png)),
        ("grey and alpha", encoded(grey_alpha, ImageFormat::Png)),
        ("16 bits", encoded(deep.clone(), ImageFormat::Png)),
        ("bmp", encoded(rgb([0, 255]), ImageFormat::Bmp)),
        ("tiff", encoded(grey([0, 255]), ImageFormat::Tiff)),
        ("tiff of 16 bits", encoded(DynamicImage::ImageLuma16(deep), ImageFormat::Tiff)),
        ("lossless webp", encoded(rgb([0, 255]), ImageFormat::WebP)),
    ] {
        assert_eq!(areas(&map, |_| ()).as_deref(), Ok(&[AREA][..]), "{name}");
        assert_eq!(areas(&map, |config| config.masks = MaskForm::Binary).map(|areas| areas.len()), Ok(1), "{name}");
    }
    // Columns of 150 and more are in the mask, of 50 and 100 not: 6 to 40.
    let soft = encoded(soft, ImageFormat::Png);
    assert_eq!(areas(&soft, |_| ()).unwrap(), [34 * 32]);
    // Inverted palettes are seen by their colours.
    let inverted = indexed(png::BitDepth::Eight, Some(&[255, 255, 255, 0, 0, 0]));
    assert_eq!(areas(&inverted, |_| ()).unwrap(), [REST]);
}

#[test]
fn transparent_pixels_are_background() {
    let rgba = |inner: [u8; 4], outer: [u8; 4]| {
        image::RgbaImage::from_fn(SIDE, SIDE, |x, y| Rgba(if inside(x, y) { inner } else { outer }))
    };
    let grey_alpha = |inner: [u8; 2], outer: [u8; 2]| {
        image::GrayAlphaImage::from_fn(SIDE, SIDE, |x, y| LumaA(if inside(x, y) { inner } else { outer }))
    };
    let deep: image::ImageBuffer<LumaA<u16>, Vec<u16>> =
        image::ImageBuffer::from_fn(SIDE, SIDE, |x, y| LumaA([65535, if inside(x, y) { 65535 } else { 0 }]));
    let white = rgba([255; 4], [255, 255, 255, 0]);
    for (name, map) in [
        ("white on a white layer", encoded(white.clone(), ImageFormat::Png)),
        ("the same as WebP", encoded(white.clone(), ImageFormat::WebP)),
        ("the same as TIFF", encoded(white, ImageFormat::Tiff)),
        ("a soft edge", encoded(rgba([255, 255, 255, 140], [255, 255, 255, 110]), ImageFormat::Png)),
        ("colours where nothing is seen", encoded(rgba([255; 4], [12, 200, 99, 0]), ImageFormat::Png)),
        ("grey", encoded(grey_alpha([255; 2], [255, 0]), ImageFormat::Png)),
        ("grey of 16 bits", encoded(DynamicImage::ImageLumaA16(deep), ImageFormat::Png)),
        ("labels", encoded(grey_alpha([7, 255], [9, 0]), ImageFormat::Png)),
    ] {
        assert_eq!(areas(&map, |_| ()).as_deref(), Ok(&[AREA][..]), "{name}");
    }
    // Black on nothing is as black as the nothing around it.
    let black = encoded(rgba([0, 0, 0, 255], [0, 0, 0, 0]), ImageFormat::Png);
    assert_eq!(areas(&black, |_| ()).unwrap(), [0; 0]);
}

#[test]
fn wide_soft_edges_are_no_labels() {
    // White in the middle, which fades over `width` pixels to every side.
    let faded = |width: f32| {
        GrayImage::from_fn(SIDE, SIDE, |x, y| {
            let away = (x as f32 - 31.5).abs().max((y as f32 - 31.5).abs()) - 10.0;
            Luma([(255.0 * (1.0 - away / width)).clamp(0.0, 255.0) as u8])
        })
    };
    for width in [10.0, 11.5, 13.0] {
        let map = encoded(faded(width), ImageFormat::Png);
        assert_eq!(areas(&map, |_| ()).unwrap().len(), 1, "{width}");
    }
    // A picture cut out of its background is none.
    let cut_out = image::RgbaImage::from_fn(SIDE, SIDE, |x, y| {
        let colour = [(x * 4) as u8, (y * 4) as u8, (255 - x * 4) as u8];
        if (24..40).contains(&x) && (24..40).contains(&y) {
            Rgba([colour[0], colour[1], colour[2], 255])
        } else {
            Rgba([0; 4])
        }
    });
    let error = areas(&encoded(cut_out, ImageFormat::Png), |_| ()).unwrap_err();
    assert!(error.contains("is no label: data.palette"), "{error}");
    // Twelve numbered things, dark as numbers are.
    let things = GrayImage::from_fn(SIDE, SIDE, |x, y| Luma([if y < 24 { 1 + (x / 6) as u8 } else { 0 }]));
    assert_eq!(areas(&encoded(things, ImageFormat::Png), |_| ()).unwrap().len(), 11);
}

#[test]
fn grey_levels_and_palettes_are_labels() {
    let three = |values: [u8; 3]| {
        GrayImage::from_fn(SIDE, SIDE, |x, y| Luma([if y < 8 { values[2] } else { values[usize::from(inside(x, y))] }]))
    };
    let map = encoded(three([0, 7, 9]), ImageFormat::Png);
    assert_eq!(areas(&map, |_| ()).unwrap(), [AREA, 8 * 64]);
    let as_rgb = encoded(DynamicImage::ImageLuma8(three([0, 7, 9])).into_rgb8(), ImageFormat::Png);
    assert_eq!(areas(&as_rgb, |_| ()).unwrap(), [AREA, 8 * 64]);
    // 255 is `ignore` beside other labels.
    assert_eq!(areas(&encoded(three([0, 7, 255]), ImageFormat::Png), |_| ()).unwrap(), [AREA]);
    assert_eq!(
        areas(&encoded(grey([0, 255]), ImageFormat::Png), |config| config.masks = MaskForm::Labels).unwrap(),
        [0; 0]
    );
    assert_eq!(areas(&indexed(png::BitDepth::Eight, Some(&[0, 0, 0, 128, 0, 0])), |_| ()).unwrap(), [AREA]);
}

#[test]
fn colours_need_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let map = RgbImage::from_fn(SIDE, SIDE, |x, y| if inside(x, y) { Rgb([128, 0, 0]) } else { Rgb([0, 0, 0]) });
    let map = encoded(map, ImageFormat::Png);
    let error = areas(&map, |_| ()).unwrap_err();
    assert!(error.contains("p.png: the colour #800000 at x 8, y 16 is no label: data.palette"), "{error}");
    assert_eq!(areas(&map, |config| config.palette = Some(Palette::Voc)).unwrap(), [AREA]);
    let error = areas(&map, |config| config.palette = Some(Palette::Cityscapes)).unwrap_err();
    assert!(error.contains("#800000") && error.contains("has no label in data.palette"), "{error}");
    let file = |text: &str| {
        let file = write(folder.path(), "colours.json", text);
        areas(&map, |config| config.palette = Some(Palette::File(file.clone())))
    };
    assert_eq!(file(r##"{"#800000": 4, "#000000": 0}"##).unwrap(), [AREA]);
    assert_eq!(file(r##"{"#800000": 4, "#000000": 9}"##).unwrap(), [REST, AREA]);
    assert!(file(r##"{"800000": 4}"##).unwrap_err().contains("is no colour; expected one such as"));
    assert!(file(r##"{"#800000": "cat"}"##).unwrap_err().contains("colours.json"));
}

#[test]
fn lossy_masks_are_refused() {
    let error = areas(&encoded(grey([0, 255]), ImageFormat::Jpeg), |_| ()).unwrap_err();
    assert!(error.contains("lossy format (JPEG, WebP)") && error.contains("save the map as PNG"), "{error}");
}

/// A run of two steps.
fn run(
    count: u32,
    more: &str,
    files: impl Fn(u32) -> Vec<(String, Vec<u8>)>,
) -> (Option<i32>, String, tempfile::TempDir) {
    run_steps(2, count, more, files)
}

/// A run on `count` pictures with the map and caption of each, through the program: status, messages.
fn run_steps(
    steps: u32,
    count: u32,
    more: &str,
    files: impl Fn(u32) -> Vec<(String, Vec<u8>)>,
) -> (Option<i32>, String, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let root = env!("CARGO_MANIFEST_DIR");
    for number in 0..count {
        write(folder.path(), &format!("img/p{number:02}.jpg"), photograph(number));
        for (name, bytes) in files(number) {
            write(folder.path(), &name, bytes);
        }
    }
    let text = format!(
        "device = \"cpu\"\noutput = \"out\"\n[model]\npath = \"{root}/checkpoints/smoke-base\"\ndtype = \"f32\"\n\
         expert_layer = 1\n[lora]\nrank = 4\nalpha = 4.0\n[data]\nsource = [\"img\"]\nresolution = 64\n\
         shuffle_buffer = 4\nworkers = 1\nflip = true\n{more}\n[train]\nsteps = {steps}\nbatch = 2\naccumulate = 1\n"
    );
    write(folder.path(), "c.toml", text);
    let train = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
        command.current_dir(folder.path()).env_remove("RUST_LOG").args(["--config", "c.toml"]).args(more);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("panicked"), "{said}");
        (output.status.code(), said, String::from_utf8_lossy(&output.stdout).into_owned())
    };
    // What a run refuses `--check` refuses, in the same words, and it sees the masks that the run sees.
    let (checked, refused, printed) = train(&["--check"]);
    let (status, said, _) = train(&[]);
    assert_eq!(checked, status, "{refused}\n{said}");
    let errors =
        |said: &str| said.lines().filter(|line| line.contains("error: ")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(errors(&refused), errors(&said));
    for line in said.lines().filter(|line| line.starts_with("first ")) {
        assert!(printed.contains(line), "{line} is not in\n{printed}");
    }
    (status, said, folder)
}

/// The map and the caption of a folder's picture.
fn beside(number: u32, map: Vec<u8>, caption: &str) -> Vec<(String, Vec<u8>)> {
    vec![(format!("img/p{number:02}.png"), map), (format!("img/p{number:02}.txt"), caption.as_bytes().to_vec())]
}

#[test]
fn white_masks_are_trained() {
    let folder = "format = \"folder\"";
    let (status, said, output) =
        run(4, folder, |number| beside(number, encoded(grey([0, 255]), ImageFormat::Png), "a cat"));
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("first 4 samples: 4 black-and-white masks used"), "{said}");
    let metrics = fs::read_to_string(output.path().join("out/metrics.jsonl")).unwrap();
    for line in metrics.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["focal"].as_f64().unwrap() > 0.0 && line["dice"].as_f64().unwrap() > 0.0, "{line}");
    }
}

#[test]
fn masks_that_do_nothing_end_the_run_before_its_first_step() {
    let folder = "format = \"folder\"";
    let full = || encoded(grey([255, 255]), ImageFormat::Png);
    let black = || encoded(grey([0, 0]), ImageFormat::Png);
    for (what, more, map) in [
        ("4 cover the whole picture (first p00)", folder.to_owned(), full()),
        ("4 are missing or have no mask (first p00)", folder.to_owned(), black()),
        (
            "4 are smaller than data.min_mask_area",
            format!("{folder}\nmin_mask_area = 0.5"),
            encoded(grey([0, 255]), ImageFormat::Png),
        ),
        (
            "4 are label maps of data.ignore",
            format!("{folder}\nmasks = \"labels\""),
            encoded(grey([0, 255]), ImageFormat::Png),
        ),
    ] {
        let (status, said, output) = run(4, &more, |number| beside(number, map.clone(), "a cat"));
        assert_eq!(status, Some(1), "{what}: {said}");
        assert!(
            said.contains(what) && said.contains("none of the first 4 samples has a usable mask"),
            "{what}: {said}"
        );
        assert_eq!(said.matches("error: ").count(), 1, "{said}");
        assert!(!output.path().join("out/lora.safetensors").exists());
        let (status, said, _) =
            run(4, &format!("{more}\nallow = [\"masks_unused\"]"), |number| beside(number, map.clone(), "a cat"));
        assert_eq!(status, Some(0), "{said}");
    }
    // Some do something.
    let mixed = |number: u32| {
        beside(number, if number == 2 { encoded(grey([0, 255]), ImageFormat::Png) } else { full() }, "a cat")
    };
    let (status, said, _) = run(4, folder, mixed);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("first 4 samples: 1 black-and-white masks used; 3 cover the whole picture"), "{said}");
}

#[test]
fn equal_masks_of_sixty_four_pictures_are_refused_and_captions_without_words() {
    let folder = "format = \"folder\"";
    let map = encoded(grey([0, 255]), ImageFormat::Png);
    let (status, said, _) = run_steps(40, 70, folder, |number| beside(number, map.clone(), "a cat"));
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("the masks of the first 64 samples are all equal"), "{said}");
    let (status, said, _) = run(70, folder, |number| beside(number, map.clone(), "a cat"));
    // The run has 4 samples: too few to say so.
    assert_eq!(status, Some(0), "{said}");
    let (status, said, _) = run(4, folder, |number| beside(number, map.clone(), "\u{feff} \n"));
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("all of its 4 captions are empty") && said.contains("captions_empty"), "{said}");
    let (status, said, _) = run(4, &format!("{folder}\nallow = [\"captions_empty\", \"masks_unused\"]"), |number| {
        beside(number, map.clone(), "")
    });
    assert_eq!(status, Some(0), "{said}");
}

#[test]
fn names_behind_the_last_token_are_said() {
    let names: Vec<String> = (0..24).map(|number| format!("giraffe umbrella broccoli number {number}")).collect();
    let classes = serde_json::to_string(&names).unwrap();
    let map = GrayImage::from_fn(SIDE, SIDE, |x, _| Luma([(x * 24 / SIDE) as u8]));
    let map = encoded(map, ImageFormat::Png);
    let coco = "format = \"coco\"\nlabels = \"lab\"\nclasses = \"classes.json\"";
    let (status, said, _) = run(4, coco, |number| {
        vec![(format!("lab/p{number:02}.png"), map.clone()), ("classes.json".into(), classes.clone().into_bytes())]
    });
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("have no word in the prompt, or one behind its last token (first p0"), "{said}");
    assert!(
        said.contains("the text encoders cut prompts: 4 of the first 4;") && said.contains("CLIP reads 75"),
        "{said}"
    );
    assert_eq!(said.matches("the text encoders cut").count(), 1, "{said}");
}

#[test]
fn captions_that_are_cut_are_counted_and_the_first_is_shown() {
    let map = encoded(grey([0, 255]), ImageFormat::Png);
    let long = format!("{}an umbrella behind all that", "a red giraffe beside a blue umbrella ".repeat(20));
    // None, one, all; a caption of exactly what is read is whole.
    let words = |count: usize| vec!["a"; count].join(" ");
    for (captions, cut) in [
        ([words(3), words(75), words(1), words(2)], None),
        ([words(3), words(76), words(1), words(2)], Some("1 of the first 4; p01 has 76 tokens, CLIP reads 75")),
        ([long.clone(), words(1), long.clone(), words(2)], Some("2 of the first 4; p0")),
    ] {
        let (status, said, _) =
            run(4, "format = \"folder\"", |number| beside(number, map.clone(), &captions[number as usize]));
        assert_eq!(status, Some(0), "{said}");
        match cut {
            Some(cut) => assert!(said.contains(&format!("the text encoders cut prompts: {cut}")), "{said}"),
            None => assert!(!said.contains("the text encoders cut"), "{said}"),
        }
    }
}
