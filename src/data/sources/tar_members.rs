//! Lists the members of a tar file from their headers, without reading their data. After a damaged header, the next
//! readable one is searched for.
use super::byte_source::ByteReader;
use crate::system::file_kind;
use crate::system::limits::{TAR_EXTENSION, TAR_SEARCH};
use std::io;
use tar::{EntryType, Header, PaxExtensions};

const BLOCK: u64 = 512;
/// Bytes read at a time when searching.
const CHUNK: usize = 1 << 20;

/// A member or a damaged part of a tar file.
#[derive(Debug, PartialEq, Eq)]
pub enum TarPart {
    /// A file, folder or link.
    Member {
        /// Path within the archive.
        name: String,
        /// Where its data begin in the archive, in bytes.
        offset: u64,
        /// Bytes of its data.
        length: u64,
        /// Whether it is an ordinary file.
        is_file: bool,
    },
    /// Unreadable bytes up to `end`, the next readable header or the end of the file.
    Damage {
        /// First byte of the gap.
        start: u64,
        /// Byte behind the gap.
        end: u64,
        /// Why the header at its start cannot be read.
        problem: String,
    },
}

/// Iterates over the headers.
pub struct Members {
    reader: ByteReader,
    size: u64,
    position: u64,
    /// Whether the file ended, without damage, before the mark of the archive's end: it may have been cut between two
    /// members.
    pub is_unended: bool,
}

/// The fields of extension headers that apply to the next member.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    length: Option<u64>,
}

/// The content of a block where a header is expected.
enum Found {
    Header(Box<Header>),
    /// Zeros, which mark the end of the archive.
    Nothing,
    Damage(String),
}

impl Members {
    /// The members of what `reader` reads.
    pub fn new(reader: ByteReader) -> Self {
        let size = reader.length();
        Self { reader, size, position: 0, is_unended: false }
    }

    /// The next member or damaged part; `None` at the end.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn step(&mut self) -> io::Result<Option<TarPart>> {
        let start = self.position;
        let mut extensions = Extensions::default();
        loop {
            let problem = match self.header()? {
                None if self.position == start => {
                    self.is_unended = self.size > 0;
                    return Ok(None);
                }
                None => "the member that an extension header describes is missing".to_string(),
                Some(Found::Header(header)) => match self.member(&header, &mut extensions)? {
                    Ok(Some(member)) => return Ok(Some(member)),
                    Ok(None) => continue,
                    Err(problem) => problem,
                },
                Some(Found::Damage(problem)) => problem,
                Some(Found::Nothing) => match self.search(self.position + BLOCK)? {
                    // Zeros up to the end of the file, or trailing bytes that are no archive.
                    None => return Ok(None),
                    Some(_) => "zeros in place of a header".to_string(),
                },
            };
            let found = self.search(self.position + BLOCK)?;
            self.position = found.unwrap_or(self.size);
            return Ok(Some(TarPart::Damage { start, end: self.position, problem }));
        }
    }

    /// Reads the block at the current position; `None` at the end of the file.
    fn header(&mut self) -> io::Result<Option<Found>> {
        let left = self.size.saturating_sub(self.position).min(BLOCK);
        let mut block = [0; BLOCK as usize];
        self.reader.read_exact_at(&mut block[..left as usize], self.position)?;
        Ok(match left {
            0 => None,
            _ if self.position == 0 && file_kind::of(&block).is_some() => {
                Some(Found::Damage(file_kind::of(&block).unwrap_or_default().into()))
            }
            _ if block.iter().all(|byte| *byte == 0) => Some(Found::Nothing),
            BLOCK if has_checksum(&block) => Some(Found::Header(Box::new(Header::from_byte_slice(&block).clone()))),
            BLOCK => Some(Found::Damage("no header of a file".into())),
            _ => Some(Found::Damage("cut short within a header".into())),
        })
    }

    /// Advances past the member of `header`, which is at the current position. An extension header is merged into
    /// `extensions` and yields `None`.
    fn member(&mut self, header: &Header, extensions: &mut Extensions) -> io::Result<Result<Option<TarPart>, String>> {
        let kind = header.entry_type();
        let is_known = header.as_gnu().is_some() || header.as_ustar().is_some();
        let is_pax = kind.is_pax_local_extensions() || kind.is_pax_global_extensions();
        let is_extension = is_known && (kind.is_gnu_longname() || kind.is_gnu_longlink() || is_pax);
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
            self.reader.read_exact_at(&mut text, offset)?;
            extensions.take(kind, text);
        }
        self.position = behind.min(self.size);
        let is_file = kind.is_file();
        Ok(Ok((!is_extension).then_some(TarPart::Member { name, offset, length, is_file })))
    }

    /// Skips the blocks that list the parts of a sparse file.
    fn behind_sparse(&mut self, mut offset: u64) -> io::Result<u64> {
        /// Offset of the flag that says whether another block follows.
        const MORE: usize = 504;
        loop {
            let mut block = [0; BLOCK as usize];
            if self.size.saturating_sub(offset) < BLOCK {
                return Ok(offset);
            }
            self.reader.read_exact_at(&mut block, offset)?;
            offset += BLOCK;
            if block[MORE] == 0 {
                return Ok(offset);
            }
        }
    }

    /// The first block at or after `start` with a magic number and a valid checksum.
    fn search(&mut self, start: u64) -> io::Result<Option<u64>> {
        let end = self.size.min(start.saturating_add(TAR_SEARCH));
        let mut chunk = vec![0; CHUNK];
        let mut at = start;
        while at + BLOCK <= end {
            let taken = (end - at).min(CHUNK as u64) / BLOCK * BLOCK;
            let bytes = &mut chunk[..taken as usize];
            self.reader.read_exact_at(bytes, at)?;
            let is_header = |block: &[u8]| block[257..].starts_with(b"ustar") && has_checksum(block);
            if let Some(place) = bytes.chunks_exact(BLOCK as usize).position(is_header) {
                return Ok(Some(at + place as u64 * BLOCK));
            }
            at += taken;
        }
        Ok(None)
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

/// Whether the block's checksum field matches; the field itself counts as spaces.
fn has_checksum(block: &[u8]) -> bool {
    let byte = |(at, &byte)| if (148..156).contains(&at) { 32 } else { u32::from(byte) };
    let sum: u32 = block.iter().enumerate().map(byte).sum();
    Header::from_byte_slice(block).cksum().is_ok_and(|stored| stored == sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;

    #[test]
    fn an_archive_without_the_mark_of_its_end_is_noticed() {
        let mut archive = tar::Builder::new(Vec::new());
        for name in ["a", "b"] {
            let mut header = Header::new_gnu();
            header.set_size(700);
            archive.append_data(&mut header, name, [7; 700].as_slice()).expect("member");
        }
        let bytes = archive.into_inner().expect("archive");
        let (whole, second) = (bytes.len(), 3 * BLOCK as usize);
        // Whole; without its mark; within the zeros behind the last member; between two members.
        for (length, is_unended, count) in
            [(whole, false, 2), (whole - 1024, true, 2), (whole - 1100, true, 2), (second, true, 1)]
        {
            let mut file = tempfile::tempfile().expect("file");
            file.write_all(&bytes[..length]).expect("write");
            let mut members = Members::new(ByteReader::file(Arc::new(file)).expect("reader"));
            let parts: Vec<TarPart> = std::iter::from_fn(|| members.step().expect("part")).collect();
            assert!(parts.iter().all(|part| matches!(part, TarPart::Member { .. })), "{parts:?}");
            assert_eq!((members.is_unended, parts.len()), (is_unended, count), "{length}");
        }
    }
}
