//! The entropy-coded scans of a JPEG file: Huffman codes to coefficients, baseline and progressive.
use super::header::{Component, Frame, Tables, ZIGZAG};

/// Codes of up to this many bits are looked up at once.
const LOOKUP_BITS: u32 = 9;

/// A Huffman table.
pub struct Huffman {
    /// By the next [`LOOKUP_BITS`] bits: length of the code, symbol; length 0 for longer codes.
    lookup: Vec<(u8, u8)>,
    /// By length: the first code beyond those of this length, filled up to 16 bits.
    limits: [u32; 17],
    /// By length: what to add to a code to get its place among the symbols.
    offsets: [i32; 17],
    symbols: Vec<u8>,
}

impl Huffman {
    /// From the number of codes of each length 1 to 16, and the symbols in order of their codes.
    pub fn new(counts: &[u8], symbols: &[u8]) -> Option<Self> {
        let mut table = Self {
            lookup: vec![(0, 0); 1 << LOOKUP_BITS],
            limits: [0; 17],
            offsets: [0; 17],
            symbols: symbols.to_vec(),
        };
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
    fn decode(&self, bits: &mut Bits) -> Option<u8> {
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
struct Bits<'a> {
    bytes: &'a [u8],
    position: usize,
    buffer: u64,
    /// Bits in the buffer, and how many of them lie beyond the marker.
    count: u32,
    beyond: u32,
}

impl<'a> Bits<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0, buffer: 0, count: 0, beyond: 0 }
    }

    fn refill(&mut self) {
        // Mostly there are four bytes without markers, which come at once.
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

    /// The next `count` bits, at most 16.
    #[inline(always)]
    fn peek(&mut self, count: u32) -> u32 {
        if self.count < count {
            self.refill();
        }
        (self.buffer >> (self.count - count)) as u32 & ((1 << count) - 1)
    }

    /// Drops bits that have been seen by [`Self::peek`].
    fn drop(&mut self, count: u32) {
        self.count -= count;
    }

    #[inline(always)]
    fn take(&mut self, count: u32) -> u32 {
        let bits = self.peek(count);
        self.drop(count);
        bits
    }

    /// A coefficient of `size` bits: the half with a leading 0 is negative.
    #[inline(always)]
    fn signed(&mut self, size: u32) -> i32 {
        if size == 0 {
            return 0;
        }
        let value = self.take(size) as i32;
        if value < 1 << (size - 1) { value - (1 << size) + 1 } else { value }
    }

    /// Goes on after a restart marker.
    fn restart(&mut self) -> Option<()> {
        if self.overrun() {
            return None;
        }
        match self.bytes.get(self.position..self.position + 2)? {
            [0xff, 0xd0..=0xd7] => *self = Self { position: self.position + 2, ..Self::new(self.bytes) },
            _ => return None,
        }
        Some(())
    }

    /// Whether more was read than there is before the marker.
    fn overrun(&self) -> bool {
        self.count < self.beyond
    }
}

/// One pass over some of the coefficients of some of the components.
pub struct Scan {
    /// Component, and its DC and AC table.
    parts: Vec<(usize, usize, usize)>,
    /// First and last coefficient in zigzag order.
    first: usize,
    last: usize,
    /// Bit that this scan refines down to, and whether an earlier one came before.
    low: u32,
    refines: bool,
}

/// What decoding carries from block to block.
#[derive(Default)]
struct State {
    predictions: [i32; 4],
    /// Blocks yet to come that have no more coefficients in this scan.
    end_of_band: u32,
}

impl Scan {
    /// Reads a scan's header and checks that the frame and the tables have what it names.
    pub fn read(segment: &[u8], frame: &Frame, tables: &Tables) -> Option<Self> {
        let count = usize::from(*segment.first()?);
        let listed = segment.get(1..1 + 2 * count)?;
        let part = |entry: &[u8]| {
            let component = frame.components.iter().position(|component| component.id == entry[0])?;
            Some((component, usize::from(entry[1] >> 4), usize::from(entry[1] & 15)))
        };
        let parts = listed.chunks_exact(2).map(part).collect::<Option<Vec<_>>>()?;
        let (first, last) = (usize::from(*segment.get(1 + 2 * count)?), usize::from(*segment.get(2 + 2 * count)?));
        let approximation = *segment.get(3 + 2 * count)?;
        let scan = match frame.progressive {
            true => {
                let low = u32::from(approximation & 15);
                Self { parts, first, last, low, refines: approximation >> 4 != 0 }
            }
            false => Self { parts, first: 0, last: 63, low: 0, refines: false },
        };
        let ordered = scan.first <= scan.last && scan.last < 64 && scan.low < 14;
        // In progressive files the DC stands alone, and AC scans have one component.
        let separate = !frame.progressive || (scan.first == 0) == (scan.last == 0);
        let single = !frame.progressive || scan.first == 0 || scan.parts.len() == 1;
        if !ordered || !separate || !single || scan.parts.is_empty() || has_twin(&scan.parts) {
            return None;
        }
        let needs_dc = scan.first == 0 && !scan.refines;
        let needs_ac = scan.last > 0;
        let defined = scan.parts.iter().all(|&(_, dc, ac)| {
            let defined = |tables: &[Option<Huffman>; 4], index: usize| tables.get(index).is_some_and(Option::is_some);
            (!needs_dc || defined(&tables.dc, dc)) && (!needs_ac || defined(&tables.ac, ac))
        });
        defined.then_some(scan)
    }

    /// Decodes the scan's data into the frame's coefficients; returns how many bytes it took.
    pub fn run(&self, bytes: &[u8], frame: &mut Frame, tables: &Tables) -> Option<usize> {
        let mut bits = Bits::new(bytes);
        let mut state = State::default();
        let units = match self.parts[..] {
            // A scan of one component has a block a unit, and no blocks that only fill up.
            [(index, ..)] => {
                let component = &frame.components[index];
                (component.width.div_ceil(8), component.height.div_ceil(8))
            }
            _ => (frame.width.div_ceil(8 * frame.horizontal), frame.height.div_ceil(8 * frame.vertical)),
        };
        for unit in 0..units.0 * units.1 {
            if tables.restart_interval > 0 && unit > 0 && unit % tables.restart_interval == 0 {
                bits.restart()?;
                state = State::default();
            }
            let (column, row) = (unit % units.0, unit / units.0);
            for part in &self.parts {
                let component = &mut frame.components[part.0];
                let (across, down) = match self.parts.len() {
                    1 => (1, 1),
                    _ => (component.horizontal, component.vertical),
                };
                for block in 0..across * down {
                    let (x, y) = (column * across + block % across, row * down + block / across);
                    self.block(&mut bits, &mut state, *part, component, y * component.blocks_across + x, tables)?;
                }
            }
        }
        // Whatever stands between the last code and the next marker fills up a byte, or is rubbish.
        let rest = bytes.get(bits.position..)?;
        let marker = rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff | 0xd0..=0xd7))?;
        (!bits.overrun()).then_some(bits.position + marker)
    }

    fn block(
        &self,
        bits: &mut Bits,
        state: &mut State,
        (index, dc, ac): (usize, usize, usize),
        component: &mut Component,
        block: usize,
        tables: &Tables,
    ) -> Option<()> {
        let coefficients = component.coefficients.get_mut(block)?;
        if self.first == 0 {
            if self.refines {
                coefficients[0] |= (bits.take(1) << self.low) as i16;
            } else {
                let size = tables.dc[dc].as_ref()?.decode(bits)?;
                if size > 16 {
                    return None;
                }
                let prediction = &mut state.predictions[index];
                *prediction = prediction.wrapping_add(bits.signed(u32::from(size)));
                coefficients[0] = prediction.wrapping_shl(self.low) as i16;
            }
        }
        if self.last > 0 {
            let table = tables.ac[ac].as_ref()?;
            match self.refines {
                true => self.refine(bits, state, coefficients, table)?,
                false => self.first_pass(bits, state, coefficients, table)?,
            }
        }
        Some(())
    }

    #[inline(always)]
    fn first_pass(&self, bits: &mut Bits, state: &mut State, block: &mut [i16; 64], table: &Huffman) -> Option<()> {
        if state.end_of_band > 0 {
            state.end_of_band -= 1;
            return Some(());
        }
        let mut place = self.first.max(1);
        while place <= self.last {
            let symbol = table.decode(bits)?;
            let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            match (run, size) {
                (15, 0) => place += 16,
                // Runs of blocks without coefficients exist in progressive files alone.
                (_, 0) if self.first == 0 => break,
                (_, 0) => {
                    state.end_of_band = (1 << run) - 1 + bits.take(run as u32);
                    break;
                }
                _ => {
                    place += run;
                    let natural = *ZIGZAG.get(place)?;
                    block[usize::from(natural)] = (bits.signed(size) << self.low) as i16;
                    place += 1;
                }
            }
        }
        Some(())
    }

    fn refine(&self, bits: &mut Bits, state: &mut State, block: &mut [i16; 64], table: &Huffman) -> Option<()> {
        let bit = 1i16 << self.low;
        let mut place = self.first;
        while state.end_of_band == 0 && place <= self.last {
            let symbol = table.decode(bits)?;
            let (mut run, size) = (usize::from(symbol >> 4), symbol & 15);
            let mut new = 0;
            match (run, size) {
                (15, 0) => (),
                (_, 0) => {
                    state.end_of_band = (1 << run) + bits.take(run as u32);
                    break;
                }
                (_, 1) => new = if bits.take(1) == 1 { bit } else { -bit },
                _ => return None,
            }
            // Coefficients known before are refined on the way; the run counts those that are still zero.
            while place <= self.last {
                let value = &mut block[usize::from(ZIGZAG[place])];
                place += 1;
                if *value != 0 {
                    refine_value(bits, value, bit);
                } else if run > 0 {
                    run -= 1;
                } else {
                    *value = new;
                    break;
                }
            }
        }
        if state.end_of_band > 0 {
            for place in &ZIGZAG[place.min(64)..=self.last] {
                let value = &mut block[usize::from(*place)];
                if *value != 0 {
                    refine_value(bits, value, bit);
                }
            }
            state.end_of_band -= 1;
        }
        Some(())
    }
}

/// Adds one more bit to a coefficient that is known to be other than zero.
fn refine_value(bits: &mut Bits, value: &mut i16, bit: i16) {
    if bits.take(1) == 1 && *value & bit == 0 {
        *value = value.wrapping_add(if *value > 0 { bit } else { -bit });
    }
}

/// Whether a component is listed twice.
fn has_twin(parts: &[(usize, usize, usize)]) -> bool {
    parts.iter().enumerate().any(|(index, part)| parts[..index].iter().any(|other| other.0 == part.0))
}
