//! Pictures of every format decode to Pillow's pixels, upright and over white.
use candle_core::{DType, Device, Tensor};
use seg4diff::data::codec::photograph::{self, EXTENSIONS};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pictures")
}

fn expected() -> BTreeMap<String, Tensor> {
    let all: HashMap<String, Tensor> =
        candle_core::safetensors::load(folder().join("expected.safetensors"), &Device::Cpu).unwrap();
    assert!(all.len() > 70, "{} pictures", all.len());
    all.into_iter().collect()
}

/// Values that differ, and by how much at most.
fn difference(found: &[u8], wanted: &Tensor) -> (usize, u8) {
    let wanted = wanted.to_dtype(DType::U8).unwrap().flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let off = || found.iter().zip(&wanted).map(|(found, wanted)| found.abs_diff(*wanted)).filter(|off| *off > 0);
    (off().count(), off().max().unwrap_or(0))
}

#[test]
fn every_format_decodes_to_pillow_s_pixels() {
    let mut problems = vec![];
    for (name, wanted) in expected() {
        let bytes = std::fs::read(folder().join(&name)).unwrap();
        let size = (wanted.dims()[1], wanted.dims()[0]);
        match (photograph::decode(&bytes), photograph::header(&bytes).map(|header| header.size)) {
            (Ok(found), Ok(said)) => {
                if (found.width() as usize, found.height() as usize) != size || said != size {
                    problems.push(format!("{name}: {:?}, header {said:?}, expected {size:?}", found.dimensions()));
                    continue;
                }
                let (count, most) = difference(found.as_raw(), &wanted);
                // JPEG within TIFF is decoded by the crate `tiff`, which rounds otherwise.
                if count > 0 && (name != "jpeg.tiff" || most > 1) {
                    problems.push(format!("{name}: {count} of {} values differ, by up to {most}", wanted.elem_count()));
                }
            }
            (found, said) => problems.push(format!("{name}: {:?} {said:?}", found.map(|found| found.dimensions()))),
        }
        let extension = name.rsplit('.').next().unwrap();
        assert!(EXTENSIONS.contains(&extension), "{name}");
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn formats_that_are_not_read_are_named() {
    for (bytes, name) in [
        (&b"\0\0\0\x18ftypheic\0\0\0\0mif1heic...."[..], "HEIC is not read: convert it to JPEG, PNG or WebP"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf....", "AVIF is not read"),
        (b"\xff\x0a........", "JPEG XL is not read"),
        (b"\0\0\0\x0cJXL \x0d\x0a\x87\x0a", "JPEG XL is not read"),
        (b"\0\0\0\x0cjP  \x0d\x0a\x87\x0a", "JPEG 2000 is not read"),
        (b"8BPS\0\x01", "PSD is not read"),
        (b"", "the file is empty"),
        (b"<!DOCTYPE html>", "could not be determined"),
    ] {
        for problem in [photograph::decode(bytes).map(|_| ()), photograph::header(bytes).map(|_| ())] {
            assert!(problem.as_ref().is_err_and(|problem| problem.contains(name)), "{name}: {problem:?}");
        }
    }
}

#[test]
fn a_picture_that_is_cut_short_is_no_picture() {
    for (name, _) in expected() {
        let bytes = std::fs::read(folder().join(&name)).unwrap();
        for length in [bytes.len() / 3, bytes.len() / 2, bytes.len() * 2 / 3] {
            let decoded = photograph::decode(&bytes[..length]);
            // Metadata behind the pixels, and the second picture of an animation, are no loss.
            let is_behind = ["animated.webp", "exif.webp", "exif-named.webp", "xmp.webp", "animated.gif"];
            assert!(decoded.is_err() || is_behind.contains(&name.as_str()), "{name} cut to {length}");
        }
    }
}

#[test]
fn transparent_pixels_lie_over_the_colour_that_is_asked_for() {
    let bytes = std::fs::read(folder().join("rgba.png")).unwrap();
    let [white, black] = [255, 0].map(|grey| photograph::decode_over(&bytes, image::Rgb([grey; 3])).unwrap());
    assert_eq!(white, photograph::decode(&bytes).unwrap());
    assert_eq!((white.get_pixel(0, 0).0, black.get_pixel(0, 0).0), ([255; 3], [0; 3]), "wholly transparent");
    assert_eq!(white.get_pixel(20, 12), black.get_pixel(20, 12), "wholly opaque");
    assert!(photograph::header(&bytes).unwrap().has_alpha);
    for name in ["rgb.png", "grey.png", "orientation-6.jpg", "rgb-lzw.tiff", "lossy-80.webp"] {
        assert!(!photograph::header(&std::fs::read(folder().join(name)).unwrap()).unwrap().has_alpha, "{name}");
    }
}
