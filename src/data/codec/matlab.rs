//! Label maps in MATLAB's files (MAT, level 5), as PASCAL-Context has them: one matrix of numbers in a file.
//!
//! Compressed elements are inflated only as far as what they say of themselves, once that has been checked. The crate
//! matfile 0.5 inflates them whole before it looks at their size, reads a file that is cut short as one without matrices,
//! and prints to the terminal.
use crate::system::guard::guarded;
use crate::system::limits::{self, LABEL_MAP};
use flate2::read::ZlibDecoder;
use std::io::Read;

/// Length of the text and version that a file begins with.
const HEADER: usize = 128;
/// Longest list of sides, and longest name of a matrix, in bytes.
const LONGEST_TEXT: u64 = 4096;
/// Numbers that are read at once.
const CHUNK: usize = 1 << 13;

const CUT: &str = "the file ends too early";

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
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width]`.
    pub labels: Vec<u32>,
}

impl LabelMatrix {
    /// The matrix `name` of a file.
    ///
    /// # Errors
    /// Says what is wrong with the file, or that it has no such matrix of two dimensions of whole numbers, or that it
    /// would take more memory than it may.
    pub fn read(file: &[u8], name: &str) -> Result<Self, String> {
        guarded(|| Self::read_unguarded(file, name))
    }

    fn read_unguarded(file: &[u8], name: &str) -> Result<Self, String> {
        let (header, mut rest) = file.split_at_checked(HEADER).ok_or("no MATLAB file: too short")?;
        if !header.ends_with(b"IM") {
            return Err("no MATLAB file of level 5, written on a little-endian machine".into());
        }
        let mut names = vec![];
        while !rest.is_empty() {
            let element = Tag::read(&mut rest)?;
            let (data, behind) = rest.split_at_checked(element.length as usize).ok_or(CUT)?;
            // What is compressed is not padded.
            let padding = if element.kind == kind::COMPRESSED { 0 } else { element.padding() };
            rest = behind.get(padding as usize..).unwrap_or(&[]);
            let found = match element.kind {
                kind::MATRIX => matrix(&mut &*data, name)?,
                kind::COMPRESSED => {
                    let mut inflated = ZlibDecoder::new(data);
                    let Tag { kind: kind::MATRIX, length, .. } = Tag::read(&mut inflated)? else { continue };
                    let found = matrix(&mut inflated.by_ref().take(length), name)?;
                    // The checksum stands at the end, behind what fills up the last number.
                    if found.is_ok() {
                        inflated.take(8).read_to_end(&mut vec![]).map_err(of_reading)?;
                    }
                    found
                }
                _ => continue,
            };
            match found {
                Ok(found) => return Ok(found),
                Err(other) => names.push(other),
            }
        }
        Err(format!("has no matrix {name}; it has: {}", names.join(", ")))
    }
}

/// What stands before an element's data.
struct Tag {
    kind: u32,
    length: u64,
    /// The data, where up to four bytes of it stand in the tag itself.
    small: Option<[u8; 4]>,
}

impl Tag {
    fn read(bytes: &mut dyn Read) -> Result<Self, String> {
        let mut word = || -> Result<[u8; 4], String> {
            let mut word = [0; 4];
            bytes.read_exact(&mut word).map_err(of_reading)?;
            Ok(word)
        };
        let (first, second) = (u32::from_le_bytes(word()?), word()?);
        Ok(match first >> 16 {
            0 => Self { kind: first, length: u32::from_le_bytes(second).into(), small: None },
            length @ 1..=4 => Self { kind: first & 0xffff, length: length.into(), small: Some(second) },
            length => return Err(format!("{length} bytes within a tag of four")),
        })
    }

    /// Bytes that fill up the data to a multiple of eight.
    fn padding(&self) -> u64 {
        if self.small.is_some() { 0 } else { self.length.next_multiple_of(8) - self.length }
    }

    /// The data of an element that is no longer than it may be.
    fn text(bytes: &mut dyn Read) -> Result<(u32, Vec<u8>), String> {
        let tag = Self::read(bytes)?;
        if let Some(small) = tag.small {
            return Ok((tag.kind, small[..tag.length as usize].to_vec()));
        }
        if tag.length > LONGEST_TEXT {
            return Err(format!("{} bytes where a name or sides are expected", tag.length));
        }
        let mut data = vec![0; tag.length as usize];
        bytes.read_exact(&mut data).map_err(of_reading)?;
        let padding = &mut [0; 8][..tag.padding() as usize];
        bytes.read_exact(padding).map_err(of_reading)?;
        Ok((tag.kind, data))
    }
}

fn of_reading(problem: std::io::Error) -> String {
    match problem.kind() {
        std::io::ErrorKind::UnexpectedEof => CUT.into(),
        _ => format!("damaged compressed data: {problem}"),
    }
}

/// Bytes of a number of this type.
fn width(kind: u32) -> Result<usize, String> {
    match kind {
        kind::UINT8 | kind::INT8 => Ok(1),
        kind::UINT16 | kind::INT16 => Ok(2),
        kind::UINT32 | kind::INT32 | kind::SINGLE => Ok(4),
        kind::DOUBLE => Ok(8),
        other => Err(format!("numbers of MATLAB's type {other} are not read")),
    }
}

/// Data as numbers that are not negative.
fn numbers(kind: u32, data: &[u8]) -> Result<Vec<u32>, String> {
    let whole = |value: f64| match value.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&value) {
        true => Ok(value as u32),
        false => Err(format!("{value} is no label")),
    };
    match kind {
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

fn words<const N: usize, T>(data: &[u8], of: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.chunks_exact(N).filter_map(|bytes| bytes.try_into().ok()).map(of).collect()
}

/// The matrix in an element's data, or its name where that is not `name`.
fn matrix(data: &mut dyn Read, name: &str) -> Result<Result<LabelMatrix, String>, String> {
    let _flags = Tag::text(data)?;
    let (kind, sides) = Tag::text(data)?;
    let sides = numbers(kind, &sides)?;
    let (_, found) = Tag::text(data)?;
    if found != name.as_bytes() {
        return Ok(Err(String::from_utf8_lossy(&found).into_owned()));
    }
    let &[height, width] = &sides[..] else {
        return Err(format!("{name} has {} dimensions, expected 2", sides.len()));
    };
    let bytes = u64::from(height).checked_mul(width.into()).and_then(|count| count.checked_mul(4));
    limits::check_picture((width.into(), height.into()), bytes, LABEL_MAP)
        .map_err(|problem| format!("{name}: {problem}"))?;
    let (height, width) = (height as usize, width as usize);
    let labels = columns(data, name, height, width)?;
    Ok(Ok(LabelMatrix { width, height, labels }))
}

/// The numbers of a matrix, which lie one column after the other, as rows.
fn columns(data: &mut dyn Read, name: &str, height: usize, width: usize) -> Result<Vec<u32>, String> {
    let tag = Tag::read(data)?;
    let size = self::width(tag.kind)?;
    let count = tag.length / size as u64;
    if count != (height * width) as u64 || count == 0 {
        return Err(format!("{name} has {count} numbers, but is {height} by {width}"));
    }
    let mut rest = tag.small.as_ref().map_or(&[][..], |small| small).chain(data);
    let mut labels = vec![0; height * width];
    let (mut place, mut bytes) = (0, vec![0; CHUNK * size]);
    while place < labels.len() {
        let taken = CHUNK.min(labels.len() - place) * size;
        rest.read_exact(&mut bytes[..taken]).map_err(of_reading)?;
        for label in numbers(tag.kind, &bytes[..taken])? {
            labels[place % height * width + place / height] = label;
            place += 1;
        }
    }
    Ok(labels)
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
