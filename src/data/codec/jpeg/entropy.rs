//! Entropy-coded scans of a JPEG file: Huffman codes to coefficients, baseline and progressive.
use super::header::{Component, Frame, Tables, ZIGZAG};
use super::huffman::{Bits, Huffman};

/// A scan: a pass over a range of coefficients of some components.
pub struct Scan {
    /// Indices of the component, its DC table and its AC table.
    parts: Vec<(usize, usize, usize)>,
    /// First and last coefficient in zigzag order.
    first: usize,
    last: usize,
    /// Lowest bit of this scan, and whether it refines an earlier scan (successive approximation).
    low: u32,
    refines: bool,
}

/// Decoder state carried from block to block.
#[derive(Default)]
struct BlockState {
    predictions: [i32; 4],
    /// Blocks left in an end-of-band run.
    end_of_band: u32,
}

impl Scan {
    /// Parses a scan header and checks it against frame and tables.
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
        // Progressive scans hold DC alone, or AC of one component.
        let separate = !frame.progressive || (scan.first == 0) == (scan.last == 0);
        let single = !frame.progressive || scan.first == 0 || scan.parts.len() == 1;
        // A component occurs once.
        let has_twin = scan
            .parts
            .iter()
            .enumerate()
            .any(|(index, part)| scan.parts[..index].iter().any(|other| other.0 == part.0));
        if !ordered || !separate || !single || scan.parts.is_empty() || has_twin {
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

    /// Decodes the scan into the frame's coefficients; returns the number of bytes consumed.
    pub fn run(&self, bytes: &[u8], frame: &mut Frame, tables: &Tables) -> Option<usize> {
        let mut bits = Bits::new(bytes);
        let mut state = BlockState::default();
        let units = match self.parts[..] {
            // A scan of one component is not interleaved: one block a unit, no padding blocks.
            [(index, ..)] => {
                let component = &frame.components[index];
                (component.width.div_ceil(8), component.height.div_ceil(8))
            }
            _ => (frame.width.div_ceil(8 * frame.horizontal), frame.height.div_ceil(8 * frame.vertical)),
        };
        for unit in 0..units.0 * units.1 {
            if tables.restart_interval > 0 && unit > 0 && unit % tables.restart_interval == 0 {
                bits.restart()?;
                state = BlockState::default();
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
        // Skip to the next marker, over padding or garbage.
        let rest = bytes.get(bits.position..)?;
        let marker = rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff | 0xd0..=0xd7))?;
        (!bits.overrun()).then_some(bits.position + marker)
    }

    fn block(
        &self,
        bits: &mut Bits,
        state: &mut BlockState,
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
    fn first_pass(
        &self,
        bits: &mut Bits,
        state: &mut BlockState,
        block: &mut [i16; 64],
        table: &Huffman,
    ) -> Option<()> {
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
                // End-of-band runs exist in progressive files only.
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

    fn refine(&self, bits: &mut Bits, state: &mut BlockState, block: &mut [i16; 64], table: &Huffman) -> Option<()> {
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
            // Known coefficients are refined on the way; the run counts zero ones only.
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

/// Refines a non-zero coefficient by one bit.
fn refine_value(bits: &mut Bits, value: &mut i16, bit: i16) {
    if bits.take(1) == 1 && *value & bit == 0 {
        *value = value.wrapping_add(if *value > 0 { bit } else { -bit });
    }
}
