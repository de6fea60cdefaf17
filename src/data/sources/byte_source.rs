//! Where a shard's bytes are: in a file, or in an object of a store. Both are read by ranges.
use super::remote::{Object, Scan};
use crate::system::{
    patience::{self, Patient, patiently},
    platform::read_exact_at,
};
use std::{fs::File, io, path::Path, sync::Arc};

/// A shard's file or object.
#[derive(Clone, Debug)]
pub enum ByteSource {
    /// A file of this machine.
    File(Arc<Path>),
    /// An object in a store.
    Object(Arc<Object>),
}

/// Reads a [`ByteSource`] from front to back.
pub enum ByteReader {
    /// An open file and its length.
    File(Arc<File>, u64),
    /// Reads ahead, a few blocks at a time.
    Object(Scan),
}

impl ByteSource {
    /// The file's path or the object's URL, as messages name it.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Object(object) => object.path(),
        }
    }

    /// Whether both are the same file or object.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(path), Self::File(other)) => path == other,
            (Self::Object(object), Self::Object(other)) => Arc::ptr_eq(object, other),
            _ => false,
        }
    }

    /// Whether a file begins as gzip does, whatever it is called. Objects are told by their names.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn is_gzip(&self) -> io::Result<bool> {
        let Self::File(path) = self else { return Ok(false) };
        let Patient(file) = patience::open(path)?;
        let mut start = [0; 2];
        Ok(read_exact_at(&file, &mut start, 0).is_ok() && start == [0x1f, 0x8b])
    }

    /// A reader from the front.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(&self) -> io::Result<ByteReader> {
        match self {
            Self::File(path) => ByteReader::file(Arc::new(patience::open(path)?.0)),
            Self::Object(object) => Ok(ByteReader::Object(object.scan())),
        }
    }

    /// Fills `bytes` from those that begin at `offset`.
    ///
    /// # Errors
    /// There are fewer, or they cannot be read.
    pub fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(path) => {
                let Patient(file) = patience::open(path)?;
                patiently(|| read_exact_at(&file, bytes, offset))
            }
            Self::Object(object) => object.read_exact_at(bytes, offset),
        }
    }
}

impl ByteReader {
    /// A reader of an open file.
    ///
    /// # Errors
    /// Its length cannot be read.
    pub fn file(file: Arc<File>) -> io::Result<Self> {
        let length = patiently(|| file.metadata())?.len();
        Ok(Self::File(file, length))
    }

    /// The length in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::File(_, length) => *length,
            Self::Object(scan) => scan.length(),
        }
    }

    /// Fills `bytes` from those that begin at `offset`.
    ///
    /// # Errors
    /// There are fewer, or they cannot be read.
    pub fn read_exact_at(&mut self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file, _) => patiently(|| read_exact_at(file, bytes, offset)),
            Self::Object(scan) => scan.read_exact_at(bytes, offset),
        }
    }
}
