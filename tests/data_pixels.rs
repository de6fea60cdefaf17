//! Pixels and masks are those of the reference libraries: pycocotools, Pillow, torchvision, torch.
use image::{DynamicImage, ImageBuffer, ImageFormat, Rgb, RgbImage, Rgba};
use seg4diff::config::Crop;
use seg4diff::data::codec::crop::{Draws, Grid, Placement};
use seg4diff::data::codec::rle::RunLengths;
use seg4diff::data::codec::{photograph, polygon, resize};
use seg4diff::data::{LabelMap, Mask};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/data")).join(name)
}

fn read_json<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

/// Row-major pixels from hexadecimal text, the first in the lowest bit.
fn unpack(hex: &str, count: usize) -> Vec<bool> {
    let byte = |index: usize| u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).unwrap();
    (0..count).map(|pixel| byte(pixel / 8) >> (pixel % 8) & 1 == 1).collect()
}

fn pixels(mask: &Mask) -> Vec<bool> {
    (0..mask.height()).flat_map(|y| (0..mask.width()).map(move |x| mask.get(x, y))).collect()
}

/// The mask at the points of `grid`.
fn sample(runs: &RunLengths, grid: &Grid) -> Mask {
    let mut mask = Mask::new(grid.width(), grid.height());
    runs.add_to(&mut mask, grid);
    mask
}

const NO_DRAWS: Draws = Draws { mirror: 0.9, left: 0.0, top: 0.0, drop_caption: 0.9 };
const MIRRORED: Draws = Draws { mirror: 0.1, ..NO_DRAWS };

#[derive(Deserialize)]
struct PolygonCase {
    size: [u64; 2],
    polygon: Vec<f64>,
    text: String,
}

#[test]
fn polygons_are_drawn_as_by_pycocotools() {
    let cases: Vec<PolygonCase> = read_json("polygons.json");
    assert!(cases.len() > 280);
    for PolygonCase { size: [height, width], polygon: points, text } in cases {
        let drawn = polygon::draw(height, width, &points).unwrap();
        assert_eq!(drawn.to_text(), text, "{height}×{width}: {points:?}");
    }
}

#[test]
fn absurd_polygons_are_refused() {
    let refused = |points: &[f64]| polygon::draw(20, 30, points).unwrap_err();
    assert!(refused(&[1.0, 1.0, 5.0, 5.0]).contains("4 numbers, expected x and y of at least three points"));
    assert!(refused(&[1.0, 1.0, 5.0, 5.0, 3.0, 2.0, 1.0]).contains("7 numbers"));
    for wrong in [1e9, -1e300, f64::NAN, f64::INFINITY] {
        assert!(refused(&[1.0, 1.0, 5.0, wrong, 3.0, 2.0]).contains("far outside"));
    }
    let zigzag: Vec<f64> = (0..100).flat_map(|point| [f64::from(point % 2) * 1e6, 3.0]).collect();
    assert!(refused(&zigzag).contains("too long"));
    assert!(polygon::draw(0, 30, &[1.0; 6]).is_err() && polygon::draw(1 << 20, 1 << 20, &[1.0; 6]).is_err());
}

#[derive(Deserialize)]
struct RunLengthCase {
    size: [u64; 2],
    counts: Vec<u64>,
    text: String,
    area: u64,
    bits: Option<String>,
}

#[test]
fn run_lengths_are_those_of_pycocotools() {
    let cases: Vec<RunLengthCase> = read_json("rle.json");
    assert!(cases.len() > 60);
    for RunLengthCase { size: [height, width], counts, text, area, bits } in cases {
        let from_list = RunLengths::from_counts(height, width, &counts).unwrap();
        let from_text = RunLengths::from_text(height, width, &text).unwrap();
        assert_eq!(from_list, from_text);
        assert_eq!(from_list.to_text(), text);
        assert_eq!(from_text.area(), area);
        let Some(bits) = bits else { continue };
        let bitmap = unpack(&bits, (height * width) as usize);
        assert_eq!(RunLengths::encode(height as usize, width as usize, &bitmap).unwrap(), from_list);
        assert_eq!(from_list.bitmap(), bitmap);
        // unscaled, the square in the middle
        let side = height.min(width) as usize;
        let placement = Placement::new((width as usize, height as usize), side, Crop::Center, false, &NO_DRAWS);
        let grid = placement.grid();
        let mask = sample(&from_list, &grid);
        assert_eq!(from_list.area_on(&grid), mask.area());
        for y in 0..side {
            for x in 0..side {
                let (source_x, source_y) = grid.source(x, y);
                assert_eq!(
                    mask.get(x, y),
                    bitmap[source_y * width as usize + source_x],
                    "{height}×{width} at {x}, {y}"
                );
            }
        }
    }
}

#[test]
fn every_pixel_is_read_off_the_runs_at_any_scale_and_mirrored() {
    let cases: Vec<RunLengthCase> = read_json("rle.json");
    for RunLengthCase { size: [height, width], text, bits, .. } in cases {
        let Some(bits) = bits else { continue };
        let (height, width) = (height as usize, width as usize);
        let bitmap = unpack(&bits, height * width);
        let runs = RunLengths::from_text(height as u64, width as u64, &text).unwrap();
        for (side, draws) in [(1, NO_DRAWS), (5, MIRRORED), (64, NO_DRAWS), (150, MIRRORED)] {
            for crop in [Crop::Center, Crop::Random, Crop::Stretch] {
                let draws = Draws { left: 0.7, top: 0.99, ..draws };
                let grid = Placement::new((width, height), side, crop, true, &draws).grid();
                let mask = sample(&runs, &grid);
                let expected: Vec<bool> = (0..side * side)
                    .map(|pixel| grid.source(pixel % side, pixel / side))
                    .map(|(x, y)| bitmap[y * width + x])
                    .collect();
                assert!(pixels(&mask) == expected, "{height}×{width} to {side}");
                assert_eq!(runs.area_on(&grid), mask.area());
            }
        }
    }
}

#[test]
fn bad_run_lengths_are_refused_with_their_reason() {
    let text = |text: &str| RunLengths::from_text(4, 5, text).unwrap_err();
    assert!(text("d0~").contains("invalid byte 0x7e"), "{}", text("d0~"));
    assert!(text("5 5").contains("invalid byte 0x20 at 1"));
    assert!(text("").contains("add up to 0"));
    assert!(text("55").contains("add up to 10, not to the 4×5"));
    assert!(text("oo").contains("break off"));
    assert!(text("d1").contains("exceed") || text("d1").contains("break off"));
    assert!(text("ooooooooo").contains("too long"));
    assert!(text("N").contains("below zero"), "{}", text("N"));
    assert!(RunLengths::from_text(4, 5, "5é").is_err());
    let list = |counts: &[u64]| RunLengths::from_counts(4, 5, counts).unwrap_err();
    assert!(list(&[19]).contains("add up to 19"));
    assert!(list(&[10, 11]).contains("exceed"));
    assert!(list(&[u64::MAX, u64::MAX]).contains("exceed"));
    assert!(RunLengths::from_counts(0, 5, &[]).is_err());
    assert!(RunLengths::from_counts(u64::MAX, 2, &[1]).is_err());
    assert!(RunLengths::from_counts(1 << 20, 1 << 20, &[1 << 40]).is_err());
}

#[derive(Deserialize)]
struct ImageCase {
    name: String,
    size: [usize; 2],
    side: usize,
    text: String,
    bits: String,
}

#[test]
fn scaling_and_the_centre_window_are_pillow_s() {
    let cases: Vec<ImageCase> = read_json("images.json");
    assert_eq!(cases.len(), 6);
    for ImageCase { name, size: [height, width], side, text, bits } in cases {
        let open = |name: String| image::open(fixture("images").join(name)).unwrap().into_rgb8();
        let expected = open(format!("{name}_expected.png"));
        let placement = Placement::new((width, height), side, Crop::Center, true, &NO_DRAWS);
        let square = placement.apply(&open(format!("{name}.png"))).unwrap();
        assert!(square == expected.into_raw(), "{name}");

        let runs = RunLengths::from_text(height as u64, width as u64, &text).unwrap();
        assert!(pixels(&sample(&runs, &placement.grid())) == unpack(&bits, side * side), "{name}");
    }
}

#[derive(Deserialize)]
struct StretchCase {
    name: String,
    size: [usize; 2],
    side: usize,
    text: String,
    /// SHA-256 of the pixels.
    pixels: String,
    bits: String,
}

#[test]
fn squeezing_the_whole_is_pillow_s() {
    let cases: Vec<StretchCase> = read_json("stretch.json");
    assert_eq!(cases.len(), 6);
    for StretchCase { name, size: [height, width], side, text, pixels: wanted, bits } in cases {
        let image = image::open(fixture("images").join(format!("{name}.png"))).unwrap().into_rgb8();
        let runs = RunLengths::from_text(height as u64, width as u64, &text).unwrap();
        let [square, mirrored] = [NO_DRAWS, MIRRORED].map(|draws| {
            let draws = Draws { left: 0.7, top: 0.9, ..draws };
            let placement = Placement::new((width, height), side, Crop::Stretch, true, &draws);
            (placement.apply(&image).unwrap(), pixels(&sample(&runs, &placement.grid())))
        });
        let digest: String = Sha256::digest(&square.0).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, wanted, "{name}");
        assert!(square.1 == unpack(&bits, side * side), "{name}");
        let place = |pixel: usize| pixel / side * side + side - 1 - pixel % side;
        for pixel in 0..side * side {
            assert_eq!(mirrored.0[3 * pixel..3 * pixel + 3], square.0[3 * place(pixel)..3 * place(pixel) + 3]);
            assert_eq!(mirrored.1[pixel], square.1[place(pixel)]);
        }
    }
}

#[derive(Deserialize)]
struct ResizeCase {
    name: String,
    size: (u32, u32),
    bilinear: String,
    bicubic: String,
}

#[test]
fn resizing_is_pillow_s_at_any_size() {
    let cases: Vec<ResizeCase> = read_json("resize.json");
    assert_eq!(cases.len(), 80);
    let digest = |image: &RgbImage| -> String {
        Sha256::digest(image.as_raw()).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    for ResizeCase { name, size, bilinear, bicubic } in cases {
        let image = photograph::decode(&std::fs::read(fixture("images").join(&name)).unwrap()).unwrap();
        let resized = resize::bilinear(&image, size.0, size.1);
        assert_eq!(digest(&resized), bilinear, "{name} to {size:?}");
        assert_eq!(digest(&resize::bicubic(&image, size.0, size.1)), bicubic, "{name} to {size:?}, bicubic");

        let (columns, rows) = (size.0 / 3..size.0.div_ceil(2), size.1 / 4..size.1);
        let window = resize::bilinear_window(&image, size, columns.clone(), rows.clone());
        let cut =
            image::imageops::crop_imm(&resized, columns.start, rows.start, columns.len() as u32, rows.len() as u32);
        assert!(window == cut.to_image(), "a window of {name} to {size:?}");
    }
}

#[test]
fn colours_of_16_bits_keep_their_upper_byte() {
    // Pillow: Image.open(file).convert("RGB")
    let image = ImageBuffer::<Rgb<u16>, _>::from_fn(9, 5, |x, y| Rgb([x as u16 * 7000, y as u16 * 10007, 0x12ff]));
    let alpha = ImageBuffer::<Rgba<u16>, _>::from_fn(9, 5, |x, y| {
        let Rgb([red, green, blue]) = *image.get_pixel(x, y);
        Rgba([red, green, blue, 0xff00 + x as u16])
    });
    for image in [DynamicImage::from(image), DynamicImage::from(alpha)] {
        let mut file = Cursor::new(Vec::new());
        image.write_to(&mut file, ImageFormat::Png).unwrap();
        let decoded = photograph::decode(file.get_ref()).unwrap();
        let expected = RgbImage::from_fn(9, 5, |x, y| Rgb([((x * 7000) >> 8) as u8, ((y * 10007) >> 8) as u8, 0x12]));
        assert_eq!(decoded, expected);
    }
}

#[test]
fn label_maps_of_every_depth_keep_their_values() {
    let values: BTreeMap<String, Vec<Vec<u32>>> = read_json("labels.json");
    assert_eq!(values.len(), 7);
    for (name, rows) in values {
        let bytes = std::fs::read(fixture("images/labels").join(format!("{name}.png"))).unwrap();
        let map = LabelMap::decode(&bytes).unwrap();
        assert_eq!((map.height, map.width), (rows.len(), rows[0].len()));
        let found: Vec<Vec<u32>> = (0..map.height).map(|y| (0..map.width).map(|x| map.get(x, y)).collect()).collect();
        assert_eq!(found, rows, "{name}");
        assert!(LabelMap::decode(&bytes[..bytes.len() / 2]).is_err());
    }
    assert!(LabelMap::decode(b"no PNG").is_err());
}

#[test]
fn masks_shrink_as_torch_interpolates() {
    let mut mask = Mask::new(70, 6);
    mask.fill(10..65, 1..3);
    mask.set(69, 5);
    assert_eq!(mask.area(), 55 * 2 + 1);
    assert!(mask.get(64, 2) && !mask.get(65, 2) && mask.get(69, 5) && !mask.get(70, 5) && !mask.get(0, 6));
    let dense: Vec<f32> = pixels(&mask).into_iter().map(|pixel| f32::from(u8::from(pixel))).collect();
    assert_eq!(dense.len(), 420);
    assert_eq!(dense.iter().sum::<f32>(), 111.0);
    // torch: F.interpolate(mask, (4, 9), mode="nearest") takes rows 0 1 3 4 and columns 0 7 15 23 31 38 46 54 62
    let small = mask.shrink_nearest(9, 4);
    let expected: Vec<f32> =
        [0, 1, 3, 4].iter().flat_map(|&y| [0, 7, 15, 23, 31, 38, 46, 54, 62].map(|x| dense[y * 70 + x])).collect();
    assert_eq!(small, expected);
}
