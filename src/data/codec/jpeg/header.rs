//! The marker segments of a JPEG file.
use super::huffman::Huffman;

/// Larger pictures of three channels are left to the crate `image` and its limits; Pillow warns from this size on.
/// Decoding takes up to 12 bytes a pixel; of four channels, up to 15.
const MAX_PIXELS: usize = 89_478_485;

/// Natural index of each zigzag index.
pub const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
];

/// Iterates over markers.
pub struct SegmentReader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> SegmentReader<'a> {
    /// `None` if the start-of-image marker is missing.
    pub fn start(bytes: &'a [u8]) -> Option<Self> {
        bytes.starts_with(&[0xff, 0xd8]).then_some(Self { bytes, position: 2 })
    }

    /// The next marker's code; fill bytes before it are skipped.
    pub fn marker(&mut self) -> Option<u8> {
        if self.byte()? != 0xff {
            return None;
        }
        loop {
            match self.byte()? {
                0xff => (),
                code => return Some(code),
            }
        }
    }

    /// The current segment's payload, without its length.
    pub fn segment(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(big_endian(self.bytes, self.position)?);
        let segment = self.bytes.get(self.position + 2..self.position + length)?;
        self.position += length;
        Some(segment)
    }

    pub fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.position..).unwrap_or_default()
    }

    pub fn skip(&mut self, count: usize) {
        self.position += count;
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.position).copied();
        self.position += 1;
        byte
    }
}

pub fn big_endian(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// A colour component: its sampling factors and coefficients.
pub struct Component {
    pub id: u8,
    /// Sampling factors: samples across and down in each minimum coded unit (MCU).
    pub horizontal: usize,
    pub vertical: usize,
    pub quantisation: usize,
    /// Size in samples, without padding.
    pub width: usize,
    pub height: usize,
    /// Blocks in a row, padding included.
    pub blocks_across: usize,
    /// 64 coefficients a block, in natural order.
    pub coefficients: Vec<[i16; 64]>,
}

pub struct Frame {
    pub width: usize,
    pub height: usize,
    pub progressive: bool,
    /// Greatest sampling factors of all components.
    pub horizontal: usize,
    pub vertical: usize,
    pub components: Vec<Component>,
}

impl Frame {
    /// Parses a frame header followed by `length` bytes. `None` unless it is a picture of 8 bits and one, three or
    /// four components, small enough for `length` bytes.
    pub fn read(segment: &[u8], progressive: bool, length: usize) -> Option<Self> {
        let precision = *segment.first()?;
        let (height, width) = (usize::from(big_endian(segment, 1)?), usize::from(big_endian(segment, 3)?));
        let listed = segment.get(6..6 + 3 * usize::from(*segment.get(5)?))?;
        let most = if listed.len() == 12 { MAX_PIXELS / 4 * 3 } else { MAX_PIXELS };
        if precision != 8 || width * height == 0 || width * height > most || !matches!(listed.len(), 3 | 9 | 12) {
            return None;
        }
        let factors = |entry: &[u8]| (usize::from(entry[1] >> 4), usize::from(entry[1] & 15));
        let entries = || listed.chunks_exact(3);
        if entries().map(factors).any(|(across, down)| !(1..=4).contains(&across) || !(1..=4).contains(&down)) {
            return None;
        }
        let horizontal = entries().map(|entry| factors(entry).0).max()?;
        let vertical = entries().map(|entry| factors(entry).1).max()?;
        let units = (width.div_ceil(8 * horizontal), height.div_ceil(8 * vertical));
        // A block takes at least one bit.
        let blocks: usize = entries().map(factors).map(|(across, down)| units.0 * across * units.1 * down).sum();
        if blocks > 8 * length {
            return None;
        }
        let component = |entry: &[u8]| {
            let (across, down) = factors(entry);
            let (blocks_across, blocks_down) = (units.0 * across, units.1 * down);
            Component {
                id: entry[0],
                horizontal: across,
                vertical: down,
                quantisation: usize::from(entry[2]),
                width: (width * across).div_ceil(horizontal),
                height: (height * down).div_ceil(vertical),
                blocks_across,
                coefficients: vec![[0; 64]; blocks_across * blocks_down],
            }
        };
        let components = entries().map(component).collect();
        Some(Self { width, height, progressive, horizontal, vertical, components })
    }
}

/// Tables that apply to the following scans.
#[derive(Default)]
pub struct Tables {
    /// In natural order.
    pub quantisation: [Option<[u16; 64]>; 4],
    pub dc: [Option<Huffman>; 4],
    pub ac: [Option<Huffman>; 4],
    pub restart_interval: usize,
    /// Adobe's colour transform: 0 none, 1 YCbCr, 2 YCCK.
    pub adobe: Option<u8>,
    pub jfif: bool,
}

impl Tables {
    pub fn read_quantisation(&mut self, mut segment: &[u8]) -> Option<()> {
        while let Some((&kind, rest)) = segment.split_first() {
            let wide = kind >> 4 == 1;
            let mut table = [0; 64];
            for (place, &natural) in ZIGZAG.iter().enumerate() {
                let value = if wide { big_endian(rest, 2 * place)? } else { u16::from(*rest.get(place)?) };
                table[usize::from(natural)] = value;
            }
            *self.quantisation.get_mut(usize::from(kind & 15))? = Some(table);
            segment = rest.get(if wide { 128 } else { 64 }..)?;
        }
        Some(())
    }

    pub fn read_huffman(&mut self, mut segment: &[u8]) -> Option<()> {
        while let Some((&kind, rest)) = segment.split_first() {
            let counts = rest.get(..16)?;
            let total = counts.iter().map(|&count| usize::from(count)).sum::<usize>();
            let table = Huffman::new(counts, rest.get(16..16 + total)?)?;
            let tables = if kind >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            *tables.get_mut(usize::from(kind & 15))? = Some(table);
            segment = rest.get(16 + total..)?;
        }
        Some(())
    }

    pub fn read_adobe(&mut self, segment: &[u8]) {
        if segment.starts_with(b"Adobe") {
            self.adobe = segment.get(11).copied();
        }
    }
}
