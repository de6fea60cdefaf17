//! Tar shards with damaged headers or truncated: readable samples are read, lost ones are counted, and the order stays
//! resumable.
mod data_config;

use data_config::plain;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use seg4diff::config::{DataConfig, DataFormat};
use seg4diff::data::{Cursor, Loader};
use std::fs;
use std::path::Path;

const SAMPLES: usize = 150;
/// Three members of a header and a block each.
const SAMPLE: usize = 3 * 1024;

fn config(shard: &Path, shuffle_buffer: usize, max_broken: f64) -> DataConfig {
    DataConfig { max_masks: 4, shuffle_buffer, max_broken, ..plain(DataFormat::Sa1b, &[shard]) }
}

/// A shard of [`SAMPLES`] samples.
fn shard() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut png = Vec::new();
    PngEncoder::new(&mut png).write_image(&[90; 16 * 16 * 3], 16, 16, ExtendedColorType::Rgb8).unwrap();
    for number in 0..SAMPLES {
        let json = br#"{"annotations": [{"segmentation": {"size": [16, 16], "counts": [6, 250]}}]}"#;
        for (extension, content) in [("jpg", &png[..]), ("json", json), ("txt", b"A caption.")] {
            assert!(content.len() <= 512);
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, format!("sa_{number}.{extension}"), content).unwrap();
        }
    }
    archive.into_inner().unwrap()
}

/// The keys of the first epoch in order, each with the position after it, and the number of broken samples.
fn epoch(config: &DataConfig, start: Option<&Cursor>) -> (Vec<(String, Cursor)>, u64) {
    let mut loader = Loader::new(config, 1, start, false).unwrap();
    let mut seen = Vec::new();
    loop {
        let batch = loader.next_batch(1).unwrap();
        if batch.epoch > 0 {
            return (seen, batch.cursor.broken);
        }
        seen.push((batch.samples[0].key.clone(), batch.cursor));
    }
}

#[test]
fn a_damaged_header_costs_its_own_sample_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.tar");
    let whole = shard();
    for member in [0, 1, 2, 100, 101, 102, 3 * SAMPLES - 3, 3 * SAMPLES - 2, 3 * SAMPLES - 1] {
        for damage in [&[0xa5; 512][..], &[0; 512], b"x"] {
            let mut bytes = whole.clone();
            // The last damages the checksum alone.
            let at = 1024 * member + if damage.len() == 1 { 150 } else { 0 };
            bytes[at..at + damage.len()].copy_from_slice(damage);
            fs::write(&file, bytes).unwrap();
            let (seen, broken) = epoch(&config(&file, 1, 0.5), None);
            assert_eq!((seen.len(), broken), (SAMPLES - 1, 1), "member {member}, {:?}", &damage[..1]);
            let lost = format!("sa_{}", member / 3);
            assert!(seen.iter().all(|(key, _)| *key != lost), "member {member}");
        }
    }
}

#[test]
fn lost_samples_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.tar");
    let whole = shard();
    let damaged = |from: usize, to: usize| {
        let mut bytes = whole.clone();
        bytes[from * SAMPLE..to * SAMPLE].fill(0xa5);
        fs::write(&file, bytes).unwrap();
    };
    damaged(50, 60);
    let (seen, broken) = epoch(&config(&file, 1, 0.5), None);
    assert_eq!((seen.len(), broken), (SAMPLES - 10, 10));
    let error = epoch_error(&config(&file, 1, 0.05));
    assert!(error.contains("samples are broken") && error.contains("from member 150 on"), "{error}");

    // No readable header behind it: as many samples as the remaining bytes would hold.
    damaged(10, SAMPLES);
    let error = epoch_error(&config(&file, 1, 0.5));
    assert!(error.contains("samples are broken, more than data.max_broken = 0.5"), "{error}");

    // Truncated in the middle of a member.
    fs::write(&file, &whole[..100 * SAMPLE + 1024 + 700]).unwrap();
    let (seen, broken) = epoch(&config(&file, 1, 0.5), None);
    assert_eq!((seen.len(), broken), (100, 1));
    // And of a header.
    fs::write(&file, &whole[..100 * SAMPLE + 1024 + 100]).unwrap();
    let (seen, broken) = epoch(&config(&file, 1, 0.5), None);
    assert_eq!((seen.len(), broken), (100, 1));
}

fn epoch_error(config: &DataConfig) -> String {
    let mut loader = Loader::new(config, 1, None, false).unwrap();
    (0..2 * SAMPLES).find_map(|_| loader.next_batch(1).err()).expect("an error").to_string()
}

#[test]
fn a_damaged_shard_is_resumed_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.tar");
    let mut bytes = shard();
    for member in [30, 31, 200, 449] {
        bytes[1024 * member..1024 * member + 512].fill(7);
    }
    bytes[70 * SAMPLE..75 * SAMPLE].fill(0);
    fs::write(&file, bytes).unwrap();
    let config = config(&file, 16, 0.5);
    let (whole, broken) = epoch(&config, None);
    assert_eq!((whole.len() as u64 + broken, broken), (SAMPLES as u64, 8));
    for place in (0..whole.len()).step_by(9) {
        let (rest, again) = epoch(&config, Some(&whole[place].1));
        assert!(rest == whole[place + 1..] && again == broken, "after {place}");
    }
}
