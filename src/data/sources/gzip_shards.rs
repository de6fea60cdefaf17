//! Compressed tar files, unpacked into temporary files, so that members can be read at their places.
use super::byte_source::{ByteReader, ByteSource};
use crate::system::patience;
use flate2::read::MultiGzDecoder;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes unpacked at a time.
const CHUNK: usize = 1 << 20;
/// Shards that stay unpacked: each takes an open file and its space on the disk. Those behind are unpacked again when an
/// epoch comes to them.
const OPEN_SHARDS: usize = 64;

/// The shards that are unpacked, those that were unpacked last at the end.
#[derive(Debug, Default)]
pub struct GzipShards(Mutex<VecDeque<(ByteSource, Unpacked)>>);

/// The tar file that was in a compressed one.
#[derive(Clone, Debug)]
pub struct Unpacked {
    /// In the system's folder for temporary files (`TMPDIR`), without a name: gone when the run ends, however it ends.
    pub file: Arc<File>,
    /// Why it ends early, if it does.
    pub damage: Option<String>,
}

impl GzipShards {
    /// The content of a compressed file or object. What comes before damage is kept.
    ///
    /// # Errors
    /// It cannot be read, or the temporary file cannot be written.
    pub fn unpacked(&self, source: &ByteSource) -> io::Result<Unpacked> {
        let mut shards = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, unpacked)) = shards.iter().find(|(known, _)| known.is(source)) {
            return Ok(unpacked.clone());
        }
        let unpacked = unpack(source)?;
        if shards.len() == OPEN_SHARDS {
            shards.pop_front();
        }
        shards.push_back((source.clone(), unpacked.clone()));
        Ok(unpacked)
    }
}

fn unpack(source: &ByteSource) -> io::Result<Unpacked> {
    let compressed = FrontToBack { source: source.open()?, at: 0 };
    let mut reader = MultiGzDecoder::new(BufReader::with_capacity(CHUNK, compressed));
    let mut file = tempfile::tempfile()?;
    let mut chunk = vec![0; CHUNK];
    let damage = loop {
        match reader.read(&mut chunk) {
            Ok(0) => break None,
            Ok(count) => file.write_all(&chunk[..count])?,
            Err(problem) if problem.kind() == io::ErrorKind::Interrupted => {}
            Err(problem) if patience::is_of_the_machine(&problem) => return Err(problem),
            Err(problem) => break Some(format!("gzip: {problem}")),
        }
    };
    Ok(Unpacked { file: Arc::new(file), damage })
}

/// Reads a source as a stream.
struct FrontToBack {
    source: ByteReader,
    at: u64,
}

impl Read for FrontToBack {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = (self.source.length() - self.at).min(bytes.len() as u64) as usize;
        self.source.read_exact_at(&mut bytes[..count], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}
