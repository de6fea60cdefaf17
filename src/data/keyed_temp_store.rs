//! A table from image keys to bytes, stored in an anonymous temporary file; memory holds 16 bytes an entry.
//!
//! Keys are paths. Two of them mean one picture if the shorter, in normal form (`normalise`), is the end of the longer:
//! `cats/1.jpg` and `img/cats/1` do, `1` and `cats/1` do, `dogs/1` and `cats/1` do not. Of several entries that a key
//! means, the one with the most components in common is taken.
use crate::Error;
use crate::data::codec::photograph;
use crate::data::sources::unusable::Unusable;
use crate::system::patience::patiently;
use crate::system::platform::read_exact_at;
use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::{Mutex, PoisonError};
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// Where an entry is: hashes of its last component and of its whole key, and its offset in the file. Sorted by all three.
type Place = (u32, u32, u64);

/// Collects the entries of a [`KeyedTempStore`].
pub struct KeyedTempStoreWriter {
    file: BufWriter<File>,
    position: u64,
    index: Vec<Place>,
}

/// A finished, read-only table.
pub struct KeyedTempStore {
    file: File,
    index: Vec<Place>,
}

/// An entry of a table.
pub struct TableEntry {
    /// Its key, as it was written.
    pub key: String,
    pub value: Vec<u8>,
    /// Its place among all entries.
    place: usize,
}

impl KeyedTempStoreWriter {
    /// The file is created in the system's folder for temporary files (`TMPDIR`) and removed on drop.
    pub fn new() -> Result<Self, String> {
        let file = tempfile::tempfile().map_err(temporary)?;
        Ok(Self { file: BufWriter::new(file), position: 0, index: Vec::new() })
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    pub fn insert(&mut self, key: &str, value: &[u8]) -> Result<(), String> {
        self.write(key, value).map_err(temporary)
    }

    fn write(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        let normal = normalise(key);
        self.index.push((short_hash(last_component(&normal)), short_hash(&normal), self.position));
        for part in [key.as_bytes(), value] {
            let length = u32::try_from(part.len()).map_err(io::Error::other)?;
            self.file.write_all(&length.to_le_bytes())?;
        }
        self.file.write_all(key.as_bytes())?;
        self.file.write_all(value)?;
        self.position += 8 + (key.len() + value.len()) as u64;
        Ok(())
    }

    /// A table in which a key may have several entries, for [`KeyedTempStore::all`].
    pub fn finish(self) -> Result<KeyedTempStore, String> {
        let file = self.file.into_inner().map_err(|problem| temporary(problem.into_error()))?;
        let mut index = self.index;
        index.sort_unstable();
        index.shrink_to_fit();
        Ok(KeyedTempStore { file, index })
    }

    /// A table in which a key has one entry; of equal entries the first is kept.
    ///
    /// # Errors
    /// What `differ` says of two entries of one key with different values.
    pub fn finish_distinct(
        self,
        differ: impl Fn(&TableEntry, &TableEntry) -> String,
    ) -> Result<KeyedTempStore, String> {
        let mut table = self.finish()?;
        let mut repeated = Vec::new();
        // Entries of one key stand side by side, and so do the few whose hashes are equal by chance.
        let mut first: usize = 0;
        for place in 1..table.index.len() {
            let hashes = |place: usize| (table.index[place].0, table.index[place].1);
            if hashes(first) != hashes(place) {
                first = place;
                continue;
            }
            let later = table.entry(place).map_err(temporary)?;
            for earlier in first..place {
                let earlier = table.entry(earlier).map_err(temporary)?;
                if normalise(&earlier.key) != normalise(&later.key) {
                    continue;
                }
                if earlier.value != later.value {
                    return Err(differ(&earlier, &later));
                }
                repeated.push(place);
                break;
            }
        }
        let mut places = 0..;
        table.index.retain(|_| places.next().is_some_and(|place| repeated.binary_search(&place).is_err()));
        Ok(table)
    }
}

impl KeyedTempStore {
    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The entry that `key` means, `None` if the table lacks it.
    ///
    /// # Errors
    /// Several entries with different values match equally well, or the file cannot be read.
    pub fn get(&self, key: &str) -> Result<Option<TableEntry>, Unusable> {
        let key = normalise(key);
        if let Some(entry) = self.shorter(&key).map_err(Unusable::temporary)? {
            return Ok(Some(entry));
        }
        // None is a part of the key, so the key must be a part of one alone.
        let mut found: Option<TableEntry> = None;
        for place in self.places(short_hash(last_component(&key)), None) {
            let entry = self.entry(place).map_err(Unusable::temporary)?;
            if !normalise(&entry.key).strip_suffix(&*key).is_some_and(|rest| rest.ends_with('/')) {
                continue;
            }
            match &found {
                Some(other) if other.value != entry.value => {
                    return Err(format!("`{}` and `{}` both fit `{key}`", other.key, entry.key).into());
                }
                Some(_) => {}
                None => found = Some(entry),
            }
        }
        Ok(found)
    }

    /// The values of all entries with this very key, in the order in which they were written.
    pub fn all(&self, key: &str) -> Result<Vec<Vec<u8>>, Unusable> {
        let normal = normalise(key);
        let mut values = Vec::new();
        for place in self.places(short_hash(last_component(&normal)), Some(short_hash(&normal))) {
            let entry = self.entry(place).map_err(Unusable::temporary)?;
            if entry.key == key {
                values.push(entry.value);
            }
        }
        Ok(values)
    }

    /// The longest entry that is `key` (in normal form) or its end.
    fn shorter(&self, key: &str) -> io::Result<Option<TableEntry>> {
        let last = short_hash(last_component(key));
        let starts = std::iter::once(0).chain(key.match_indices('/').map(|(slash, _)| slash + 1));
        for end in starts.map(|start| &key[start..]) {
            for place in self.places(last, Some(short_hash(end))) {
                let entry = self.entry(place)?;
                if normalise(&entry.key) == end {
                    return Ok(Some(entry));
                }
            }
        }
        Ok(None)
    }

    /// The places of entries with these hashes of the last component and of the whole key.
    fn places(&self, last: u32, whole: Option<u32>) -> std::ops::Range<usize> {
        let before = |&(a, b, _): &Place| (a, whole.map_or(0, |_| b)) < (last, whole.unwrap_or(0));
        let upto = |&(a, b, _): &Place| (a, whole.map_or(0, |_| b)) <= (last, whole.unwrap_or(0));
        self.index.partition_point(before)..self.index.partition_point(upto)
    }

    fn entry(&self, place: usize) -> io::Result<TableEntry> {
        let position = self.index[place].2;
        let mut lengths = [0; 8];
        patiently(|| read_exact_at(&self.file, &mut lengths, position))?;
        let [a, b, c, d, e, f, g, h] = lengths;
        let key_length = u32::from_le_bytes([a, b, c, d]) as usize;
        let mut key = vec![0; key_length + u32::from_le_bytes([e, f, g, h]) as usize];
        patiently(|| read_exact_at(&self.file, &mut key, position + 8))?;
        let value = key.split_off(key_length);
        Ok(TableEntry { key: String::from_utf8(key).map_err(io::Error::other)?, value, place })
    }
}

/// A table of which no entry goes to two pictures. Memory: 4 bytes an entry beside the table's.
pub struct ClaimedStore {
    pub table: KeyedTempStore,
    /// Hash of the picture's key that has taken an entry, or 0.
    claims: Mutex<Vec<u32>>,
}

impl ClaimedStore {
    pub fn new(table: KeyedTempStore) -> Self {
        Self { claims: Mutex::new(vec![0; table.len()]), table }
    }

    /// How many entries no picture has taken, and the keys of `count` of them.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn left(&self, count: usize) -> Result<(u64, Vec<String>), Error> {
        let claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let left = || claims.iter().enumerate().filter(|(_, claimed)| **claimed == 0);
        let keys = left().take(count).map(|(place, _)| self.table.entry(place).map(|entry| entry.key));
        Ok((left().count() as u64, keys.collect::<io::Result<_>>().map_err(|e| Error::Failed(temporary(e)))?))
    }

    /// The entry that the picture `key` means, `None` if the table lacks it.
    ///
    /// # Errors
    /// Those of [`KeyedTempStore::get`]; what `refused` says of an entry that another picture has taken.
    pub fn take(&self, key: &str, refused: impl Fn(&TableEntry) -> String) -> Result<Option<TableEntry>, Unusable> {
        let Some(entry) = self.table.get(key)? else { return Ok(None) };
        let hash = short_hash(&normalise(key)).max(1);
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let claimed = &mut claims[entry.place];
        if *claimed == 0 {
            // The first keeps it: the other picture must be refused whenever it comes, in whatever order workers ask.
            *claimed = hash;
        }
        if *claimed == hash { Ok(Some(entry)) } else { Err(Error::Usage(refused(&entry)).into()) }
    }
}

/// The normal form in which keys are compared: composed Unicode (NFC), `/` between components, none of them `.` or empty,
/// no image extension, and `sa_` before a number stripped with the number's leading zeros: `sa_9`, `9`, `sa_9.jpg` and
/// `sa_000009` are equal, `000009` is another.
pub fn normalise(key: &str) -> String {
    let composed = match is_nfc_quick(key.chars()) {
        IsNormalized::Yes => Cow::Borrowed(key),
        _ => key.nfc().collect(),
    };
    let mut normal = String::with_capacity(composed.len());
    for component in composed.trim().split(['/', '\\']).filter(|component| !matches!(*component, "" | ".")) {
        if !normal.is_empty() {
            normal.push('/');
        }
        normal.push_str(component);
    }
    let start = normal.rfind('/').map_or(0, |slash| slash + 1);
    if let Some((stem, extension)) = normal[start..].rsplit_once('.')
        && photograph::EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
    {
        normal.truncate(start + stem.len());
    }
    let number = normal[start..].strip_prefix("sa_").filter(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()));
    if let Some(digits) = number.filter(|digits| !digits.is_empty()) {
        let digits = match digits.trim_start_matches('0') {
            "" => "0".to_owned(),
            digits => digits.to_owned(),
        };
        normal.replace_range(start.., &digits);
    }
    normal
}

fn temporary(problem: io::Error) -> String {
    format!("temporary file: {problem}")
}

fn last_component(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

fn short_hash(text: &str) -> u32 {
    let hash = hash(text);
    (hash ^ hash >> 32) as u32
}

/// FNV-1a, 64 bits: equal on every machine and in every version.
pub fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
