//! JPEG files decode to exactly Pillow's pixels, and damaged ones do no harm.
use seg4diff::data::codec::{jpeg, photograph};
use seg4diff::sample::image::read_rgb8;
use std::path::{Path, PathBuf};

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jpeg");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "jpg"));
    files.sort();
    assert!(files.len() >= 30, "{} files", files.len());
    files
}

#[test]
fn every_kind_decodes_to_the_bit() {
    for file in files() {
        let decoded = jpeg::decode(&std::fs::read(&file).unwrap());
        let decoded = decoded.unwrap_or_else(|| panic!("{} is not decoded", file.display()));
        let expected = image::open(file.with_extension("png")).unwrap().into_rgb8();
        assert_eq!(decoded.dimensions(), expected.dimensions(), "{}", file.display());
        let off = decoded.iter().zip(expected.iter()).filter(|(found, wanted)| found != wanted).count();
        assert_eq!(off, 0, "{}: {off} of {} values", file.display(), expected.len());
    }
}

#[test]
fn a_file_that_is_cut_short_is_not_half_decoded() {
    for file in files() {
        let bytes = std::fs::read(&file).unwrap();
        for length in 0..bytes.len() - 2 {
            assert!(jpeg::decode(&bytes[..length]).is_none(), "{} cut to {length} bytes", file.display());
        }
    }
}

#[test]
fn damage_does_not_panic() {
    // Every byte in turn set to values that corrupt lengths, tables and codes.
    let mut decoded = 0;
    for file in files() {
        let bytes = std::fs::read(&file).unwrap();
        for place in 0..bytes.len() {
            for value in [0x11, 0xff] {
                let mut damaged = bytes.clone();
                damaged[place] = value;
                // A frame of gigapixels is left to the other decoder; one of megapixels would take long here.
                if place < 700 && is_large(&damaged) {
                    continue;
                }
                decoded += usize::from(jpeg::decode(&damaged).is_some());
            }
        }
    }
    assert!(decoded > 0);
}

#[test]
fn a_size_that_the_file_cannot_hold_is_refused() {
    for file in files() {
        let mut bytes = std::fs::read(&file).unwrap();
        let frame = bytes.windows(2).position(|pair| pair[0] == 0xff && (0xc0..=0xc2).contains(&pair[1])).unwrap();
        // 65 500 × 65 500 pixels would take 12 gigabytes, 8 000 × 8 000 half a gigabyte of coefficients.
        bytes[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xdc, 0xff, 0xdc]);
        let error = photograph::decode(&bytes).unwrap_err();
        assert!(error.contains("no readable image"), "{}: {error}", file.display());
        bytes[frame + 5..frame + 9].copy_from_slice(&[0x1f, 0x40, 0x1f, 0x40]);
        assert!(jpeg::decode(&bytes).is_none(), "{}", file.display());
    }
}

/// Whether the frame header says more than a million pixels.
fn is_large(bytes: &[u8]) -> bool {
    let frame = bytes.windows(2).position(|pair| pair[0] == 0xff && (0xc0..=0xc2).contains(&pair[1]));
    let side = |at: usize| bytes.get(at..at + 2).map_or(0, |side| usize::from(side[0]) << 8 | usize::from(side[1]));
    frame.is_some_and(|frame| side(frame + 5) * side(frame + 7) > 1_000_000)
}

#[test]
fn other_kinds_are_left_to_the_other_decoder() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.jpg");
    let png = std::fs::read(files()[0].with_extension("png")).unwrap();
    assert!(jpeg::decode(&png).is_none());
    // Whatever its extension.
    std::fs::write(&file, &png).unwrap();
    assert_eq!(read_rgb8(&file).unwrap(), read_rgb8(&files()[0]).unwrap());
    std::fs::write(&file, "no picture").unwrap();
    assert!(read_rgb8(&file).unwrap_err().to_string().contains("x.jpg"));
}
