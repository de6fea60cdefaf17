//! Label maps in MATLAB's files (MAT, level 5), as PASCAL-Context has them: one matrix of numbers in a file.
use flate2::read::ZlibDecoder;
use std::io::Read;

/// Length of the text and version that a file begins with.
const HEADER: usize = 128;
/// Largest matrix that is read, in bytes.
const LARGEST: u64 = 512 << 20;

/// Types of data, by the format's numbers.
mod kind {
    pub const INT8: u32 = 1;
    pub const UINT8: u32 = 2;
    pub const INT16: u32 = 3;
    pub const UINT16: u32 = 4;
    pub const INT32: u32 = 5;
    pub const UINT32: u32 = 6;
    pub const SINGLE: u32 = 7;
    pub const DOUBLE: u32 = 9;
    pub const MATRIX: u32 = 14;
    pub const COMPRESSED: u32 = 15;
}

/// A matrix of labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelMatrix {
    pub width: usize,
    pub height: usize,
    /// `[height, width]`.
    pub labels: Vec<u32>,
}

impl LabelMatrix {
    /// The matrix `name` of a file.
    ///
    /// # Errors
    /// Says what is wrong with the file, or that it has no such matrix of two dimensions of whole numbers.
    pub fn read(file: &[u8], name: &str) -> Result<Self, String> {
        let (header, mut rest) = file.split_at_checked(HEADER).ok_or("no MATLAB file: too short")?;
        if !header.ends_with(b"IM") {
            return Err("no MATLAB file of level 5, written on a little-endian machine".into());
        }
        let mut names = vec![];
        while !rest.is_empty() {
            let element = Element::take(&mut rest)?;
            let inflated;
            let mut data = element.data;
            let kind = match element.kind {
                kind::COMPRESSED => {
                    inflated = inflate(data)?;
                    let mut all = &inflated[..];
                    let inner = Element::take(&mut all)?;
                    data = inner.data;
                    inner.kind
                }
                kind => kind,
            };
            if kind == kind::MATRIX {
                match matrix(data, name)? {
                    Ok(found) => return Ok(found),
                    Err(other) => names.push(other),
                }
            }
        }
        Err(format!("has no matrix {name}; it has: {}", names.join(", ")))
    }
}

/// A part of a file: its type and its bytes.
struct Element<'a> {
    kind: u32,
    data: &'a [u8],
}

impl<'a> Element<'a> {
    /// The first element of `bytes`, which is cut off from them with what pads it.
    fn take(bytes: &mut &'a [u8]) -> Result<Self, String> {
        let cut = "the file ends too early";
        let tag = |at: usize| -> Result<u32, String> {
            let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).ok_or(cut)?;
            Ok(u32::from_le_bytes(word))
        };
        let first = tag(0)?;
        // Up to four bytes of data stand in the tag.
        let (kind, start, length, padded) = match first >> 16 {
            0 => {
                let length = tag(4)? as usize;
                // What is compressed is not padded.
                let padded = if first == kind::COMPRESSED { length } else { length.next_multiple_of(8) };
                (first, 8, length, 8 + padded)
            }
            length => (first & 0xffff, 4, length as usize, 8),
        };
        let data = bytes.get(start..start + length).ok_or(cut)?;
        *bytes = bytes.get(padded..).unwrap_or(&[]);
        Ok(Self { kind, data })
    }

    /// As numbers that are not negative.
    fn numbers(&self) -> Result<Vec<u32>, String> {
        let data = self.data;
        let whole = |value: f64| match value.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&value) {
            true => Ok(value as u32),
            false => Err(format!("{value} is no label")),
        };
        match self.kind {
            kind::UINT8 => Ok(data.iter().map(|&byte| u32::from(byte)).collect()),
            kind::INT8 => data.iter().map(|&byte| whole(f64::from(byte as i8))).collect(),
            kind::UINT16 => Ok(words(data, |bytes| u32::from(u16::from_le_bytes(bytes)))),
            kind::INT16 => words(data, |bytes| f64::from(i16::from_le_bytes(bytes))).into_iter().map(whole).collect(),
            kind::UINT32 => Ok(words(data, u32::from_le_bytes)),
            kind::INT32 => words(data, |bytes| f64::from(i32::from_le_bytes(bytes))).into_iter().map(whole).collect(),
            kind::SINGLE => words(data, |bytes| f64::from(f32::from_le_bytes(bytes))).into_iter().map(whole).collect(),
            kind::DOUBLE => words(data, f64::from_le_bytes).into_iter().map(whole).collect(),
            other => Err(format!("numbers of MATLAB's type {other} are not read")),
        }
    }
}

fn words<const N: usize, T>(data: &[u8], of: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.chunks_exact(N).filter_map(|bytes| bytes.try_into().ok()).map(of).collect()
}

fn inflate(data: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = vec![];
    let read = ZlibDecoder::new(data).take(LARGEST).read_to_end(&mut bytes);
    read.map_err(|problem| format!("damaged compressed data: {problem}"))?;
    Ok(bytes)
}

/// The matrix in an element's data, or its name where that is not `name`.
fn matrix(mut data: &[u8], name: &str) -> Result<Result<LabelMatrix, String>, String> {
    let _flags = Element::take(&mut data)?;
    let sides = Element::take(&mut data)?.numbers()?;
    let found = Element::take(&mut data)?.data;
    if found != name.as_bytes() {
        return Ok(Err(String::from_utf8_lossy(found).into_owned()));
    }
    let &[height, width] = &sides[..] else {
        return Err(format!("{name} has {} dimensions, expected 2", sides.len()));
    };
    let (height, width) = (height as usize, width as usize);
    // Columns, one after the other.
    let columns = Element::take(&mut data)?.numbers()?;
    if Some(columns.len()) != height.checked_mul(width) || columns.is_empty() {
        return Err(format!("{name} has {} numbers, but is {height} by {width}", columns.len()));
    }
    let labels = (0..height * width).map(|place| columns[place % width * height + place / width]).collect();
    Ok(Ok(LabelMatrix { width, height, labels }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What scipy.io.savemat wrote (tests/fixtures/data/gen.py): 16-bit labels compressed, 8-bit and real ones not.
    #[test]
    fn matrices_are_read_as_scipy_wrote_them() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/matlab");
        let expected: Vec<u32> = (0..15).map(|i| i * 31).collect();
        for (file, factor) in [("u16.mat", 1), ("f64.mat", 1), ("u8.mat", 0)] {
            let bytes = std::fs::read(folder.join(file)).unwrap();
            let found = LabelMatrix::read(&bytes, "LabelMap").unwrap();
            assert_eq!((found.width, found.height), (5, 3), "{file}");
            let wanted: Vec<u32> = expected.iter().map(|l| if factor == 1 { *l } else { l % 256 }).collect();
            assert_eq!(found.labels, wanted, "{file}");
            assert!(LabelMatrix::read(&bytes, "Other").unwrap_err().contains("LabelMap"));
            for end in 0..bytes.len() {
                assert!(LabelMatrix::read(&bytes[..end], "LabelMap").is_err(), "{file} cut at {end}");
            }
        }
    }
}
