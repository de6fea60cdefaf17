//! Compressed tar files, unpacked into temporary files, so that members can be read at their places.
use crate::system::patience;
use flate2::read::MultiGzDecoder;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes unpacked at a time.
const CHUNK: usize = 1 << 20;
/// Shards that stay unpacked: each takes an open file and its space on the disk. Those behind are unpacked again when an
/// epoch comes to them.
const KEPT: usize = 64;

/// The shards that are unpacked, those that were unpacked last at the end.
#[derive(Debug, Default)]
pub struct GzipShards(Mutex<VecDeque<(PathBuf, Unpacked)>>);

/// The tar file that was in a compressed one.
#[derive(Clone, Debug)]
pub struct Unpacked {
    /// In the system's folder for temporary files (`TMPDIR`), without a name: gone when the run ends, however it ends.
    pub file: Arc<File>,
    /// Why it ends early, if it does.
    pub damage: Option<String>,
}

impl GzipShards {
    /// The content of the compressed file `path`. What comes before damage is kept.
    ///
    /// # Errors
    /// The file cannot be read, or the temporary file cannot be written.
    pub fn unpacked(&self, path: &Path) -> io::Result<Unpacked> {
        let mut shards = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, unpacked)) = shards.iter().find(|(known, _)| known == path) {
            return Ok(unpacked.clone());
        }
        let unpacked = unpack(path)?;
        if shards.len() == KEPT {
            shards.pop_front();
        }
        shards.push_back((path.to_path_buf(), unpacked.clone()));
        Ok(unpacked)
    }
}

fn unpack(path: &Path) -> io::Result<Unpacked> {
    let mut reader = MultiGzDecoder::new(BufReader::with_capacity(CHUNK, patience::open(path)?));
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
