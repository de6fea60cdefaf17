//! The blocks that scans read last, in a temporary file: the samples that are drawn from the window behind a scan need not
//! be fetched again.
use crate::system::platform::read_exact_at;
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Seek, SeekFrom, Write},
};

/// Bytes that a scan asks for at a time.
pub const BLOCK: u64 = 4 << 20;
/// Blocks in the file; 1 GiB holds the usual window of a thousand samples of SA-1B three times.
const SLOTS: usize = (1 << 30) / BLOCK as usize;

/// An object's number and the block's in it.
type Name = (u64, u64);

/// A ring of blocks. The file has no name, and ends with the program.
#[derive(Debug, Default)]
pub struct RecentBlocks {
    file: Option<File>,
    slots: HashMap<Name, usize>,
    /// The slot to write next.
    next: usize,
}

impl RecentBlocks {
    /// Stores a block, in place of the oldest.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn insert(&mut self, name: Name, block: &[u8]) -> io::Result<()> {
        if self.slots.contains_key(&name) {
            return Ok(());
        }
        let slot = self.next;
        self.slots.retain(|_, taken| *taken != slot);
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile()?),
        };
        file.seek(SeekFrom::Start(slot as u64 * BLOCK))?;
        file.write_all(block)?;
        self.slots.insert(name, slot);
        self.next = (slot + 1) % SLOTS;
        Ok(())
    }

    /// Fills `bytes` from those of an object that begin at `offset`; false where a block is not there.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self, object: u64, bytes: &mut [u8], offset: u64) -> io::Result<bool> {
        let blocks = offset / BLOCK..(offset + bytes.len() as u64).div_ceil(BLOCK);
        let Some(file) = &self.file else { return Ok(false) };
        if !blocks.clone().all(|block| self.slots.contains_key(&(object, block))) {
            return Ok(false);
        }
        let mut rest = bytes;
        for block in blocks {
            let (slot, start) = (self.slots[&(object, block)] as u64, offset.max(block * BLOCK));
            let length = ((block + 1) * BLOCK - start).min(rest.len() as u64) as usize;
            let (part, behind) = rest.split_at_mut(length);
            read_exact_at(file, part, slot * BLOCK + start % BLOCK)?;
            rest = behind;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_blocks_are_read_and_older_ones_are_not_there() {
        let mut recent = RecentBlocks::default();
        let mut bytes = [0; 10];
        assert!(!recent.read(1, &mut bytes, 5).unwrap());
        let block = |number: u64| vec![number as u8; BLOCK as usize];
        for number in 0..3 {
            recent.insert((1, number), &block(number)).unwrap();
        }
        assert!(recent.read(1, &mut bytes, 2 * BLOCK - 4).unwrap());
        assert_eq!(bytes, [1, 1, 1, 1, 2, 2, 2, 2, 2, 2]);
        assert!(!recent.read(2, &mut bytes, 0).unwrap() && !recent.read(1, &mut bytes, 3 * BLOCK - 9).unwrap());
        for number in 0..SLOTS as u64 - 2 {
            recent.insert((2, number), &[9]).unwrap();
        }
        assert!(!recent.read(1, &mut bytes, 0).unwrap() && recent.read(1, &mut bytes, 2 * BLOCK).unwrap());
        assert_eq!(recent.slots.len(), SLOTS);
    }
}
