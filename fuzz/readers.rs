//! What is fuzzed: every reader of bytes that come from outside. Each takes any bytes, and asserts what must hold of what
//! it makes of them. The fuzz targets call these, and `tests/fuzz_corpus.rs` does with the corpus.
#![allow(dead_code)]
use seg4diff::config::RunConfig;
use seg4diff::data::codec::labels::LabelMap;
use seg4diff::data::codec::matlab::LabelMatrix;
use seg4diff::data::codec::photograph;
use seg4diff::data::codec::rle::{RunLengths, StoredRunLengths};
use seg4diff::data::sources::byte_source::ByteReader;
use seg4diff::data::sources::tar_members::{Members, TarPart};
use seg4diff::eval::generation::npz;
use seg4diff::system::tensor_file;
use std::io::{Cursor, Write};
use std::path::Path;

/// A reader by the name of its target; it says whether the bytes are what it reads.
pub type Reader = fn(&[u8]) -> bool;

pub const READERS: [(&str, Reader); 9] = [
    ("safetensors_header", safetensors_header),
    ("run_lengths", run_lengths),
    ("jpeg", picture),
    ("picture", picture),
    ("label_map", label_map),
    ("npz", npz),
    ("matlab", matlab),
    ("tar", tar),
    ("config", config),
];

pub fn safetensors_header(bytes: &[u8]) -> bool {
    let length = bytes.len() as u64;
    let Ok(header) = tensor_file::read_header(&mut &*bytes, length) else { return false };
    for info in header.tensors.values() {
        let (start, end) = info.data_offsets;
        assert!(start <= end && header.data + end as u64 <= length);
        assert_eq!((end - start) * 8, info.shape.iter().product::<usize>() * info.dtype.bitsize());
    }
    true
}

/// JSON as a sample's annotation has it.
pub fn run_lengths(bytes: &[u8]) -> bool {
    let Ok(stored) = serde_json::from_slice::<StoredRunLengths>(bytes) else { return false };
    let Ok(runs) = stored.check() else { return false };
    let (height, width) = (runs.height() as u64, runs.width() as u64);
    assert_eq!(runs.counts().iter().map(|count| u64::from(*count)).sum::<u64>(), height * width);
    assert!(runs.area() <= height * width);
    assert_eq!(RunLengths::from_text(height, width, &runs.to_text()).as_ref(), Ok(&runs));
    true
}

/// A picture of any format: `jpeg` starts from JPEGs, `picture` from all others.
pub fn picture(bytes: &[u8]) -> bool {
    let header = photograph::header(bytes);
    let Ok(picture) = photograph::decode(bytes) else { return false };
    let size = (picture.width() as usize, picture.height() as usize);
    assert!(size.0 > 0 && size.1 > 0 && header.is_ok_and(|header| header.size == size));
    true
}

pub fn label_map(bytes: &[u8]) -> bool {
    let Ok(map) = LabelMap::decode(bytes) else { return false };
    for (x, y) in [(0, 0), (map.width - 1, 0), (0, map.height - 1), (map.width - 1, map.height - 1)] {
        map.get(x, y);
    }
    true
}

pub fn npz(bytes: &[u8]) -> bool {
    const LENGTH: usize = 6;
    let Ok(gaussian) = npz::parse(Cursor::new(bytes), LENGTH) else { return false };
    assert_eq!((gaussian.mean.len(), gaussian.covariance.len()), (LENGTH, LENGTH * LENGTH));
    assert!(gaussian.mean.iter().chain(&gaussian.covariance).all(|value| value.is_finite()));
    true
}

pub fn matlab(bytes: &[u8]) -> bool {
    let Ok(matrix) = LabelMatrix::read(bytes, "LabelMap") else { return false };
    assert_eq!(matrix.labels.len(), matrix.width * matrix.height);
    true
}

/// Members are read from a file; whatever is in it, the walk comes to its end.
pub fn tar(bytes: &[u8]) -> bool {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("a temporary file");
    let mut members = Members::new(ByteReader::file(file.into()).expect("a length"));
    let (mut behind, mut is_whole) = (0, true);
    while let Some(step) = members.step().expect("a temporary file") {
        let (start, end) = match step {
            TarPart::Member { offset, length, .. } => (offset, offset + length),
            TarPart::Damage { start, end, .. } => {
                is_whole = false;
                (start, end)
            }
        };
        assert!(behind <= start && start <= end && end <= bytes.len() as u64);
        behind = end;
    }
    is_whole
}

pub fn config(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    RunConfig::parse(text, Path::new("config.toml"), &[]).is_ok()
}
