//! Huffman codes of a JPEG file: the tables and the bit reader.

/// Longest code in the lookup table.
const LOOKUP_BITS: u32 = 9;

/// A Huffman table.
pub struct Huffman {
    /// Indexed by the next [`LOOKUP_BITS`] bits: (code length, symbol); length 0 for longer codes.
    lookup: Vec<(u8, u8)>,
    /// By code length: one past the last code, left-aligned to 16 bits.
    limits: [u32; 17],
    /// By code length: difference between a symbol's index and its code.
    offsets: [i32; 17],
    symbols: Vec<u8>,
}

impl Huffman {
    /// From the numbers of codes of length 1 to 16, and the symbols in code order.
    pub fn new(counts: &[u8], symbols: &[u8]) -> Option<Self> {
        let lookup = vec![(0, 0); 1 << LOOKUP_BITS];
        let mut table = Self { lookup, limits: [0; 17], offsets: [0; 17], symbols: symbols.to_vec() };
        let (mut code, mut place) = (0u32, 0usize);
        for (length, &count) in (1u32..=16).zip(counts) {
            table.offsets[length as usize] = place as i32 - code as i32;
            for _ in 0..count {
                if code >= 1 << length {
                    return None;
                }
                if length <= LOOKUP_BITS {
                    let first = (code << (LOOKUP_BITS - length)) as usize;
                    let entry = (length as u8, *symbols.get(place)?);
                    table.lookup[first..first + (1 << (LOOKUP_BITS - length))].fill(entry);
                }
                code += 1;
                place += 1;
            }
            table.limits[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Some(table)
    }

    #[inline(always)]
    pub fn decode(&self, bits: &mut Bits) -> Option<u8> {
        let window = bits.peek(16);
        let (length, symbol) = self.lookup[(window >> (16 - LOOKUP_BITS)) as usize];
        if length > 0 {
            bits.drop(u32::from(length));
            return Some(symbol);
        }
        let length = (LOOKUP_BITS + 1..=16).find(|&length| window < self.limits[length as usize])?;
        bits.drop(length);
        let place = (window >> (16 - length)) as i32 + self.offsets[length as usize];
        self.symbols.get(usize::try_from(place).ok()?).copied()
    }
}

/// Reads bits up to the next marker, and zeros beyond it.
pub struct Bits<'a> {
    bytes: &'a [u8],
    pub position: usize,
    buffer: u64,
    /// Bits in the buffer, and how many of them are padding beyond the marker.
    count: u32,
    beyond: u32,
}

impl<'a> Bits<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0, buffer: 0, count: 0, beyond: 0 }
    }

    fn refill(&mut self) {
        // Fast path: four bytes without a marker.
        if let Some(word) = self.bytes.get(self.position..).and_then(|rest| rest.first_chunk())
            && !word.contains(&0xff)
        {
            self.position += 4;
            self.buffer = self.buffer << 32 | u64::from(u32::from_be_bytes(*word));
            self.count += 32;
        }
        while self.count <= 48 {
            let byte = match self.bytes.get(self.position..) {
                Some([0xff, 0, ..]) => {
                    self.position += 2;
                    0xff
                }
                Some([byte, ..]) if *byte != 0xff => {
                    self.position += 1;
                    *byte
                }
                _ => {
                    self.beyond += 8;
                    0
                }
            };
            self.buffer = self.buffer << 8 | u64::from(byte);
            self.count += 8;
        }
    }

    /// Reads `count` bits, at most 16.
    #[inline(always)]
    pub fn peek(&mut self, count: u32) -> u32 {
        if self.count < count {
            self.refill();
        }
        (self.buffer >> (self.count - count)) as u32 & ((1 << count) - 1)
    }

    /// Consumes bits seen by [`Self::peek`].
    pub fn drop(&mut self, count: u32) {
        self.count -= count;
    }

    #[inline(always)]
    pub fn take(&mut self, count: u32) -> u32 {
        let bits = self.peek(count);
        self.drop(count);
        bits
    }

    /// Reads a coefficient of `size` bits; a leading 0 makes it negative.
    #[inline(always)]
    pub fn signed(&mut self, size: u32) -> i32 {
        if size == 0 {
            return 0;
        }
        let value = self.take(size) as i32;
        if value < 1 << (size - 1) { value - (1 << size) + 1 } else { value }
    }

    /// Resumes after a restart marker.
    pub fn restart(&mut self) -> Option<()> {
        if self.overrun() {
            return None;
        }
        match self.bytes.get(self.position..self.position + 2)? {
            [0xff, 0xd0..=0xd7] => *self = Self { position: self.position + 2, ..Self::new(self.bytes) },
            _ => return None,
        }
        Some(())
    }

    /// Whether bits beyond the marker were consumed.
    pub fn overrun(&self) -> bool {
        self.count < self.beyond
    }
}
