//! Checks a Parquet file's own headers before the crate `parquet` reads it: the crate recurses into nested columns
//! without a limit, and allocates whatever size a page header claims.
//!
//! The headers are in Thrift's compact protocol; only the few numbers needed here are parsed.
use crate::system::limits::{PARQUET_DEPTH, PARQUET_FOOTER, PARQUET_PAGE};
use crate::system::patience::patiently;
use crate::system::platform::read_exact_at;
use std::fs::File;
use std::io;

/// Bytes read of a page header at first, and at most: its statistics may hold a value of the column.
const PAGE_HEADER: [u64; 2] = [4096, 1 << 20];

/// Checks the footer's length and the nesting depth of the columns.
///
/// # Errors
/// The footer is damaged, too long, or nested too deep.
pub fn check_footer(file: &File) -> Result<(), String> {
    let mut end = [0; 8];
    let failed = |problem: io::Error| problem.to_string();
    let length = file.metadata().map_err(failed)?.len();
    let Some(at) = length.checked_sub(8) else { return Ok(()) };
    patiently(|| read_exact_at(file, &mut end, at)).map_err(failed)?;
    let [a, b, c, d, b'P', b'A', b'R', b'1'] = end else { return Ok(()) };
    let bytes = u64::from(u32::from_le_bytes([a, b, c, d]));
    PARQUET_FOOTER.check(bytes)?;
    let Some(at) = at.checked_sub(bytes) else { return Ok(()) };
    let mut footer = vec![0; bytes as usize];
    patiently(|| read_exact_at(file, &mut footer, at)).map_err(failed)?;
    match depth(&footer) {
        Some(depth) if depth <= PARQUET_DEPTH => Ok(()),
        Some(depth) => Err(format!("columns are nested {depth} deep, more than {PARQUET_DEPTH}")),
        None => Err("the footer is damaged".into()),
    }
}

/// Checks the pages of the column chunk of `length` bytes at `start`.
///
/// # Errors
/// A page header is damaged, or its page would be too large.
pub fn check_pages(file: &File, start: u64, length: u64) -> Result<(), String> {
    let end = start.saturating_add(length).min(file.metadata().map_err(|problem| problem.to_string())?.len());
    let mut at = start;
    while at < end {
        let mut found = None;
        for longest in PAGE_HEADER {
            let mut header = vec![0; (end - at).min(longest) as usize];
            patiently(|| read_exact_at(file, &mut header, at)).map_err(|problem| problem.to_string())?;
            found = found.or_else(|| page(&header));
            if found.is_some() {
                break;
            }
        }
        let damaged = || format!("the header of the page at byte {at} is damaged");
        let (taken, uncompressed, compressed) = found.ok_or_else(damaged)?;
        PARQUET_PAGE.check(uncompressed)?;
        at = at.saturating_add(taken as u64).saturating_add(compressed);
    }
    Ok(())
}

/// Nesting depth of `FileMetaData.schema`, a pre-order list in which each element states its number of children.
fn depth(footer: &[u8]) -> Option<usize> {
    const SCHEMA: i64 = 2;
    const CHILDREN: i64 = 5;
    let mut deepest = 0;
    ThriftReader { bytes: footer }.each_field(&mut |reader, field, kind| {
        if (field, kind) != (SCHEMA, kind::LIST) {
            return reader.skip(kind, 0);
        }
        let (count, _) = reader.list()?;
        // For each open element: children still to come.
        let mut open: Vec<i64> = Vec::new();
        for _ in 0..count {
            let mut children = 0;
            reader.each_field(&mut |reader, field, kind| match field {
                CHILDREN => reader.number().map(|number| children = number),
                _ => reader.skip(kind, 0),
            })?;
            while open.last() == Some(&0) {
                open.pop();
            }
            if let Some(left) = open.last_mut() {
                *left -= 1;
            }
            open.push(children.max(0));
            deepest = deepest.max(open.len());
        }
        Some(())
    })?;
    Some(deepest)
}

/// Length of a page header, and the page's uncompressed and compressed lengths.
fn page(header: &[u8]) -> Option<(usize, u64, u64)> {
    const UNCOMPRESSED: i64 = 2;
    const COMPRESSED: i64 = 3;
    let (mut uncompressed, mut compressed) = (None, None);
    let mut reader = ThriftReader { bytes: header };
    reader.each_field(&mut |reader, field, kind| match field {
        UNCOMPRESSED => reader.number().map(|number| uncompressed = u64::try_from(number).ok()),
        COMPRESSED => reader.number().map(|number| compressed = u64::try_from(number).ok()),
        _ => reader.skip(kind, 0),
    })?;
    Some((header.len() - reader.bytes.len(), uncompressed?, compressed?))
}

/// Types of Thrift's compact protocol.
mod kind {
    pub const TRUE: u8 = 1;
    pub const FALSE: u8 = 2;
    pub const BYTE: u8 = 3;
    pub const I16: u8 = 4;
    pub const I64: u8 = 6;
    pub const DOUBLE: u8 = 7;
    pub const BINARY: u8 = 8;
    pub const LIST: u8 = 9;
    pub const SET: u8 = 10;
    pub const MAP: u8 = 11;
    pub const STRUCT: u8 = 12;
}

/// Limit on the recursion when skipping nested structures.
const DEEPEST_SKIP: usize = 64;

/// Receives a field's number and type, and reads its value.
type Visit<'a, 'b> = dyn FnMut(&mut ThriftReader<'a>, i64, u8) -> Option<()> + 'b;

struct ThriftReader<'a> {
    bytes: &'a [u8],
}

impl<'a> ThriftReader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn unsigned(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// A zigzag-coded integer.
    fn number(&mut self) -> Option<i64> {
        self.unsigned().map(|value| (value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Length and element type of a list.
    fn list(&mut self) -> Option<(u64, u8)> {
        let header = self.byte()?;
        let count = if header >> 4 == 15 { self.unsigned()? } else { u64::from(header >> 4) };
        Some((count, header & 15))
    }

    /// Calls `visit` with number and type of each field of a struct.
    fn each_field(&mut self, visit: &mut Visit<'a, '_>) -> Option<()> {
        let mut field = 0i64;
        loop {
            let header = self.byte()?;
            if header == 0 {
                return Some(());
            }
            field = if header >> 4 == 0 { self.number()? } else { field.wrapping_add(i64::from(header >> 4)) };
            visit(self, field, header & 15)?;
        }
    }

    /// Skips a value.
    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > DEEPEST_SKIP {
            return None;
        }
        match kind {
            kind::TRUE | kind::FALSE => Some(()),
            kind::BYTE => self.byte().map(drop),
            kind::I16..=kind::I64 => self.unsigned().map(drop),
            kind::DOUBLE => self.take(8).map(drop),
            kind::BINARY => {
                let length = self.unsigned()?;
                self.take(usize::try_from(length).ok()?).map(drop)
            }
            kind::LIST | kind::SET => {
                let (count, of) = self.list()?;
                (0..count).try_for_each(|_| self.skip_element(of, depth + 1))
            }
            kind::MAP => {
                let count = self.unsigned()?;
                let kinds = if count > 0 { self.byte()? } else { 0 };
                (0..count).try_for_each(|_| {
                    self.skip_element(kinds >> 4, depth + 1)?;
                    self.skip_element(kinds & 15, depth + 1)
                })
            }
            kind::STRUCT => self.each_field(&mut |reader, _, kind| reader.skip(kind, depth + 1)),
            _ => None,
        }
    }

    /// Skips a list element; unlike in fields, booleans take a byte each.
    fn skip_element(&mut self, kind: u8, depth: usize) -> Option<()> {
        match kind {
            kind::TRUE | kind::FALSE => self.byte().map(drop),
            _ => self.skip(kind, depth),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A footer with one leaf below `nested` groups.
    fn footer(nested: usize) -> Vec<u8> {
        let group = [0x35, 0, 0x18, 1, b'a', 0x15, 2, 0];
        let mut count = vec![0xfc];
        let mut left = nested + 1;
        while left >= 0x80 {
            count.push(left as u8 | 0x80);
            left >>= 7;
        }
        count.push(left as u8);
        let leaf = [0x15, 12, 0x25, 0, 0x18, 1, b'b', 0];
        [&[0x15, 2, 0x19][..], &count, &group.repeat(nested), &leaf, &[0x16, 0, 0x19, 0x0c, 0]].concat()
    }

    #[test]
    fn nested_columns_are_counted_and_damage_is_seen() {
        for nested in [1, 2, 20, 5000] {
            assert_eq!(depth(&footer(nested)), Some(nested + 1));
        }
        let whole = footer(3);
        assert!((0..whole.len()).all(|end| depth(&whole[..end]).is_none()));
        // Two groups of two columns each have depth two.
        let group = |children: u8| vec![0x48, 1, b'a', 0x15, children << 1, 0];
        let leaf = vec![0x15, 12, 0x38, 1, b'b', 0];
        let schema = [group(2), group(2), leaf.clone(), leaf.clone(), group(1), leaf].concat();
        assert_eq!(depth(&[&[0x29, 0x6c][..], &schema, &[0]].concat()), Some(3));
    }

    #[test]
    fn the_fixtures_pass() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data");
        for name in ["captions.parquet", "captions_int.parquet"] {
            assert_eq!(check_footer(&File::open(folder.join(name)).unwrap()), Ok(()), "{name}");
        }
    }

    #[test]
    fn pages_say_how_large_they_are() {
        // type 0, 300 bytes uncompressed, 7 compressed, a struct of one field.
        let header = [0x15, 0, 0x15, 0xd8, 4, 0x15, 14, 0x2c, 0x15, 2, 0, 0];
        assert_eq!(page(&[&header[..], &[9; 7]].concat()), Some((header.len(), 300, 7)));
        assert_eq!(page(&header[..8]), None);
    }
}
