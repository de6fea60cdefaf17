//! The members of a tar file by their headers, of which the data is never read. A damaged header does not hide what
//! comes after it: the next readable one is looked for.
use crate::system::limits::{TAR_EXTENSION, TAR_SEARCH};
use crate::system::patience::{Patient, patiently};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use tar::{EntryType, Header, PaxExtensions};

const BLOCK: u64 = 512;
/// Bytes that are searched at once.
const CHUNK: usize = 1 << 20;

/// One thing in a tar file.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Member {
        name: String,
        offset: u64,
        length: u64,
        is_file: bool,
    },
    /// From `start` to `end` nothing can be read; `end` is the next readable header, or the end of the file.
    Damage {
        start: u64,
        end: u64,
        problem: String,
    },
}

/// Walks from header to header.
pub struct Members {
    file: File,
    size: u64,
    position: u64,
}

/// What extension headers say about the member behind them.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    length: Option<u64>,
}

/// What stands at a place where a header should.
enum Found {
    Header(Box<Header>),
    /// Zeros, which mark the end.
    Nothing,
    Damage(String),
}

impl Members {
    /// # Errors
    /// The file's length cannot be told.
    pub fn new(Patient(file): Patient<File>) -> io::Result<Self> {
        let size = patiently(|| file.metadata())?.len();
        Ok(Self { file, size, position: 0 })
    }

    /// The next member, or the next part that is damaged; none at the end.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn step(&mut self) -> io::Result<Option<Step>> {
        let start = self.position;
        let mut extensions = Extensions::default();
        loop {
            let problem = match self.header()? {
                None if self.position == start => return Ok(None),
                None => "the member that an extension header describes is missing".to_string(),
                Some(Found::Header(header)) => match self.member(&header, &mut extensions)? {
                    Ok(Some(member)) => return Ok(Some(member)),
                    Ok(None) => continue,
                    Err(problem) => problem,
                },
                Some(Found::Damage(problem)) => problem,
                Some(Found::Nothing) => match self.search(self.position + BLOCK)? {
                    // Zeros up to the end, or before something that is none of the archive's.
                    None => return Ok(None),
                    Some(_) => "zeros in place of a header".to_string(),
                },
            };
            let found = self.search(self.position + BLOCK)?;
            self.position = found.unwrap_or(self.size);
            return Ok(Some(Step::Damage { start, end: self.position, problem }));
        }
    }

    /// What stands at the position; none at the end of the file.
    fn header(&self) -> io::Result<Option<Found>> {
        let left = self.size.saturating_sub(self.position).min(BLOCK);
        let mut block = [0; BLOCK as usize];
        self.read(&mut block[..left as usize], self.position)?;
        Ok(match left {
            0 => None,
            _ if block.iter().all(|byte| *byte == 0) => Some(Found::Nothing),
            BLOCK if has_checksum(&block) => Some(Found::Header(Box::new(Header::from_byte_slice(&block).clone()))),
            BLOCK => Some(Found::Damage("no header of a file".into())),
            _ => Some(Found::Damage("cut short within a header".into())),
        })
    }

    /// Steps over what `header`, which stands at the position, belongs to: a member, or none where it is an extension,
    /// which is taken in.
    fn member(&mut self, header: &Header, extensions: &mut Extensions) -> io::Result<Result<Option<Step>, String>> {
        let kind = header.entry_type();
        let is_known = header.as_gnu().is_some() || header.as_ustar().is_some();
        let is_extension = is_known && (kind.is_gnu_longname() || kind.is_gnu_longlink() || is_pax(kind));
        let length = match header.entry_size() {
            Ok(length) => extensions.length.filter(|_| !is_extension).unwrap_or(length),
            Err(_) => return Ok(Err("no header of a file".into())),
        };
        let mut offset = self.position + BLOCK;
        if header.as_gnu().is_some_and(|gnu| kind.is_gnu_sparse() && gnu.is_extended()) {
            offset = self.behind_sparse(offset)?;
        }
        let name = match extensions.name.take() {
            Some(name) if !is_extension => name,
            other => {
                extensions.name = other;
                header.path_bytes().into_owned()
            }
        };
        let name = String::from_utf8_lossy(&name).into_owned();
        let padded = length.checked_next_multiple_of(BLOCK).and_then(|padded| offset.checked_add(padded));
        let Some(behind) = padded.filter(|_| length <= self.size.saturating_sub(offset)) else {
            return Ok(Err(format!("cut short within {name}")));
        };
        if is_extension && length > TAR_EXTENSION {
            return Ok(Err(format!("a name or extension header of {length} bytes, more than {TAR_EXTENSION}")));
        }
        if is_extension {
            let mut text = vec![0; length as usize];
            self.read(&mut text, offset)?;
            extensions.take(kind, text);
        }
        self.position = behind.min(self.size);
        let is_file = kind.is_file();
        Ok(Ok((!is_extension).then_some(Step::Member { name, offset, length, is_file })))
    }

    /// Steps over the blocks that list the parts of a sparse file.
    fn behind_sparse(&self, mut offset: u64) -> io::Result<u64> {
        /// Place of the flag that says whether another one follows.
        const MORE: usize = 504;
        loop {
            let mut block = [0; BLOCK as usize];
            if self.size.saturating_sub(offset) < BLOCK {
                return Ok(offset);
            }
            self.read(&mut block, offset)?;
            offset += BLOCK;
            if block[MORE] == 0 {
                return Ok(offset);
            }
        }
    }

    /// The first block from `start` on that is a header beyond doubt.
    fn search(&self, start: u64) -> io::Result<Option<u64>> {
        let end = self.size.min(start.saturating_add(TAR_SEARCH));
        let mut chunk = vec![0; CHUNK];
        let mut at = start;
        while at + BLOCK <= end {
            let taken = (end - at).min(CHUNK as u64) / BLOCK * BLOCK;
            let bytes = &mut chunk[..taken as usize];
            self.read(bytes, at)?;
            let is_header = |block: &[u8]| block[257..].starts_with(b"ustar") && has_checksum(block);
            if let Some(place) = bytes.chunks_exact(BLOCK as usize).position(is_header) {
                return Ok(Some(at + place as u64 * BLOCK));
            }
            at += taken;
        }
        Ok(None)
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        patiently(|| self.file.read_exact_at(bytes, offset))
    }
}

impl Extensions {
    fn take(&mut self, kind: EntryType, mut text: Vec<u8>) {
        if kind.is_gnu_longname() {
            if text.last() == Some(&0) {
                text.pop();
            }
            self.name = Some(text);
        } else if kind.is_pax_local_extensions() {
            for extension in PaxExtensions::new(&text).flatten() {
                match extension.key_bytes() {
                    b"path" => self.name = Some(extension.value_bytes().to_vec()),
                    b"size" => self.length = extension.value().ok().and_then(|digits| digits.parse().ok()),
                    _ => {}
                }
            }
        }
    }
}

fn is_pax(kind: EntryType) -> bool {
    kind.is_pax_local_extensions() || kind.is_pax_global_extensions()
}

/// Whether a block's checksum is that of its bytes, its own taken for spaces.
fn has_checksum(block: &[u8]) -> bool {
    let byte = |(at, &byte)| if (148..156).contains(&at) { 32 } else { u32::from(byte) };
    let sum: u32 = block.iter().enumerate().map(byte).sum();
    Header::from_byte_slice(block).cksum().is_ok_and(|stored| stored == sum)
}
