//! Statistics of features as pytorch-fid keeps them: a `.npz` file with the mean `mu` and the covariance `sigma`.
//!
//! The arrays are read here because no crate reads them safely: npyz 0.9 ends the program over a header of nested
//! parentheses (its parser overflows the stack), and candle's reader refuses arrays that lie by columns.
use super::moments::Gaussian;
use crate::system::error::{Error, Result};
use crate::system::guard::guarded;
use crate::system::limits::STATISTICS_FILE;
use crate::system::patience;
use crate::system::whole_file::write_atomically;
use std::io::{BufReader, Cursor, Read, Seek, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

const MAGIC: &[u8] = b"\x93NUMPY";
/// Longest header of an array that is read.
const LONGEST_HEADER: u32 = 1 << 16;

/// Reads what pytorch-fid's `--save-stats` or `numpy.savez` wrote: arrays `mu` `[length]` and `sigma` `[length, length]`
/// of f32 or f64, compressed or not, of features of this `length`. Other arrays in the file do not matter.
///
/// # Errors
/// The file is none, its arrays are not of these shapes (then they are not inflated), or `sigma` is no covariance.
pub fn read(file: &Path, length: usize) -> Result<Gaussian> {
    let failed = |problem: String| Error::file(file, problem);
    let reader = patience::open(file).map_err(|e| Error::file(file, e))?;
    let bytes = reader.0.metadata().map_err(|e| Error::file(file, e))?.len();
    STATISTICS_FILE.check(bytes).map_err(failed)?;
    parse(BufReader::new(reader), length).map_err(failed)
}

/// As [`read`], from the bytes of the file.
///
/// # Errors
/// Says what is wrong with them.
pub fn parse(reader: impl Read + Seek, length: usize) -> Result<Gaussian, String> {
    let (mean, covariance) = guarded(|| {
        let mut archive = ZipArchive::new(reader).map_err(|e| format!("no .npz file: {e}"))?;
        Ok::<_, String>((array(&mut archive, "mu", &[length])?, array(&mut archive, "sigma", &[length, length])?))
    })?;
    // A covariance is symmetric: the order of its elements does not matter.
    let gaussian = Gaussian { mean, covariance };
    gaussian.check()?;
    Ok(gaussian)
}

/// Writes statistics as `.npz`; the file is whole or absent.
pub fn write(file: &Path, gaussian: &Gaussian) -> Result<()> {
    let failed = |e: zip::result::ZipError| Error::file(file, e);
    let length = gaussian.mean.len();
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    // The time of day would make equal statistics unequal files.
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    let options = options.last_modified_time(zip::DateTime::default());
    for (name, shape, values) in [
        ("mu", format!("({length},)"), &gaussian.mean),
        ("sigma", format!("({length}, {length})"), &gaussian.covariance),
    ] {
        archive.start_file(format!("{name}.npy"), options).map_err(failed)?;
        let mut bytes = header(&shape);
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        archive.write_all(&bytes).map_err(|e| Error::file(file, e))?;
    }
    let bytes = archive.finish().map_err(failed)?.into_inner();
    write_atomically(file, |out| out.write_all(&bytes))
}

/// Everything of a `.npy` file before its data: a multiple of 64 bytes.
fn header(shape: &str) -> Vec<u8> {
    let before = MAGIC.len() + 4;
    let text = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}");
    let width = (before + text.len() + 1).next_multiple_of(64) - before - 1;
    let text = format!("{text:width$}\n");
    [MAGIC, &[1, 0], &(text.len() as u16).to_le_bytes(), text.as_bytes()].concat()
}

/// Reads the member `NAME.npy`, which must have this shape.
fn array(archive: &mut ZipArchive<impl Read + Seek>, name: &str, shape: &[usize]) -> Result<Vec<f64>, String> {
    let mut member = archive.by_name(&format!("{name}.npy")).map_err(|e| format!("{e} (array {name})"))?;
    read_array(&mut member, shape).map_err(|problem| format!("{problem} (array {name})"))
}

fn read_array(reader: &mut impl Read, expected: &[usize]) -> Result<Vec<f64>, String> {
    let mut start = [0u8; 8];
    reader.read_exact(&mut start).map_err(|e| e.to_string())?;
    let Some(&[version, _]) = start.strip_prefix(MAGIC) else { return Err("no numpy array".into()) };
    let width = match version {
        1 => 2,
        2 | 3 => 4,
        other => return Err(format!("numpy's format {other} is not known")),
    };
    let mut length = [0u8; 4];
    reader.read_exact(&mut length[..width]).map_err(|e| e.to_string())?;
    let length = u32::from_le_bytes(length);
    if length > LONGEST_HEADER {
        return Err(format!("a header of {length} bytes"));
    }
    let mut header = vec![0u8; length as usize];
    reader.read_exact(&mut header).map_err(|e| e.to_string())?;
    let header = String::from_utf8_lossy(&header);
    let shape = shape(&header).ok_or_else(|| format!("no shape in {header:?}"))?;
    let width = match entry(&header, "descr").map(|text| text.trim_matches(['\'', '"'])) {
        Some("<f8") => 8,
        Some("<f4") => 4,
        other => return Err(format!("type {}, expected <f8 or <f4", other.unwrap_or("unknown"))),
    };
    if shape != expected {
        return Err(match (&shape[..], expected) {
            ([found], [expected]) => format!("features of length {found}, expected {expected}"),
            _ => format!("shape {shape:?}, expected {expected:?}"),
        });
    }
    let bytes = shape.iter().product::<usize>() * width;
    let mut data = Vec::new();
    reader.take(bytes as u64 + 1).read_to_end(&mut data).map_err(|e| e.to_string())?;
    if data.len() != bytes {
        return Err(format!("{} bytes of data, shape {shape:?} needs {bytes}", data.len()));
    }
    let values = data.chunks_exact(width).map(|value| match *value {
        [a, b, c, d] => f64::from(f32::from_le_bytes([a, b, c, d])),
        _ => value.try_into().map_or(f64::NAN, f64::from_le_bytes),
    });
    Ok(values.collect())
}

/// The value of `key` in a header such as `{'descr': '<f8', 'fortran_order': False, 'shape': (2048,), }`, as text.
fn entry<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = header.split_once(&format!("'{key}':"))?;
    let rest = rest.trim_start();
    let end = match rest.strip_prefix('(') {
        Some(inner) => inner.find(')')? + 2,
        None => rest.find([',', '}'])?,
    };
    Some(rest[..end].trim())
}

fn shape(header: &str) -> Option<Vec<usize>> {
    let inner = entry(header, "shape")?.strip_prefix('(')?.strip_suffix(')')?;
    inner.split(',').map(str::trim).filter(|side| !side.is_empty()).map(|side| side.parse().ok()).collect()
}
