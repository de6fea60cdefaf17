//! A table from image keys to bytes, stored in an anonymous temporary file; memory holds 16 bytes an entry.
//!
//! Keys are paths. They are looked up by the last component of their normal form (`normalise`); among entries that
//! share it, the one with the most trailing components in common is taken.
use crate::data::sources::unusable::Unusable;
use crate::system::patience::patiently;
use crate::system::platform::read_exact_at;
use std::fs::File;
use std::io::{self, BufWriter, Write};

/// Collects the entries of a [`KeyedTempStore`].
pub struct KeyedTempStoreWriter {
    file: BufWriter<File>,
    position: u64,
    index: Vec<(u64, u64)>,
}

/// A finished, read-only table.
pub struct KeyedTempStore {
    file: File,
    /// (hash of the key's last component, offset of the entry), sorted.
    index: Vec<(u64, u64)>,
}

impl KeyedTempStoreWriter {
    /// The file is created in the system's folder for temporary files (`TMPDIR`) and removed on drop.
    pub fn new() -> Result<Self, String> {
        let file = tempfile::tempfile().map_err(temporary)?;
        Ok(Self { file: BufWriter::new(file), position: 0, index: Vec::new() })
    }

    pub fn insert(&mut self, key: &str, value: &[u8]) -> Result<(), String> {
        self.write(key, value).map_err(temporary)
    }

    fn write(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        let key = normalise(key);
        self.index.push((hash(last_component(&key)), self.position));
        for part in [key.as_bytes(), value] {
            let length = u32::try_from(part.len()).map_err(io::Error::other)?;
            self.file.write_all(&length.to_le_bytes())?;
        }
        self.file.write_all(key.as_bytes())?;
        self.file.write_all(value)?;
        self.position += 8 + (key.len() + value.len()) as u64;
        Ok(())
    }

    pub fn finish(self) -> Result<KeyedTempStore, String> {
        let file = self.file.into_inner().map_err(|problem| temporary(problem.into_error()))?;
        let mut index = self.index;
        index.sort_unstable();
        index.shrink_to_fit();
        Ok(KeyedTempStore { file, index })
    }
}

impl KeyedTempStore {
    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The bytes of `key`, `None` if the table lacks it. Of entries with identical keys the first counts.
    ///
    /// # Errors
    /// Several different entries match equally well, or the file cannot be read.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Unusable> {
        let key = normalise(key);
        let wanted = hash(last_component(&key));
        let first = self.index.partition_point(|&(hash, _)| hash < wanted);
        let mut best: Option<(usize, String, Vec<u8>)> = None;
        let mut rival = None;
        for &(_, position) in self.index[first..].iter().take_while(|&&(hash, _)| hash == wanted) {
            let (found, value) = self.entry(position).map_err(Unusable::temporary)?;
            let score = key.rsplit('/').zip(found.rsplit('/')).take_while(|(a, b)| a == b).count();
            match &best {
                _ if score == 0 => {}
                Some((most, _, _)) if score < *most => {}
                Some((most, held, bytes)) if score == *most => {
                    if *held != found && *bytes != value {
                        rival = Some(found);
                    }
                }
                _ => (best, rival) = (Some((score, found, value)), None),
            }
        }
        match (best, rival) {
            (Some((_, held, _)), Some(other)) => Err(format!("`{held}` and `{other}` both fit `{key}`").into()),
            (best, _) => Ok(best.map(|(_, _, value)| value)),
        }
    }

    fn entry(&self, position: u64) -> io::Result<(String, Vec<u8>)> {
        let mut lengths = [0; 8];
        patiently(|| read_exact_at(&self.file, &mut lengths, position))?;
        let [a, b, c, d, e, f, g, h] = lengths;
        let key_length = u32::from_le_bytes([a, b, c, d]) as usize;
        let mut value = vec![0; key_length + u32::from_le_bytes([e, f, g, h]) as usize];
        patiently(|| read_exact_at(&self.file, &mut value, position + 8))?;
        let rest = value.split_off(key_length);
        Ok((String::from_utf8(value).map_err(io::Error::other)?, rest))
    }
}

/// The normal form in which keys are compared: no leading `./` or `/`, no image extension, and in the last component
/// neither `sa_` before a number nor leading zeros of a number. `sa_9`, `9`, `sa_9.jpg` and `000009` are equal.
pub fn normalise(key: &str) -> String {
    let key = key.trim_start_matches("./").trim_start_matches('/');
    let (folder, mut name) = key.rfind('/').map_or(("", key), |slash| key.split_at(slash + 1));
    if let Some((stem, extension)) = name.rsplit_once('.')
        && ["jpg", "jpeg", "png"].iter().any(|known| extension.eq_ignore_ascii_case(known))
    {
        name = stem;
    }
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(number) = name.strip_prefix("sa_").filter(|rest| is_number(rest)) {
        name = number;
    }
    if is_number(name) {
        let digits = name.trim_start_matches('0');
        name = if digits.is_empty() { "0" } else { digits };
    }
    format!("{folder}{name}")
}

fn temporary(problem: io::Error) -> String {
    format!("temporary file: {problem}")
}

fn last_component(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

/// FNV-1a, 64 bits: equal on every machine and in every version.
pub fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
