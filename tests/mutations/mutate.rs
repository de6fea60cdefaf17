//! Mutations of a file, drawn from a seed, equal on every machine.
use flate2::Crc;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Numbers that often cause overflows and other errors.
const NUMBERS: [&str; 18] = [
    "0",
    "-1",
    "1",
    "7",
    "0.5",
    "-0.0",
    "1e308",
    "-1e308",
    "1e-320",
    "NaN",
    "nan",
    "inf",
    "1000000000",
    "4294967296",
    "4611686018427387904",
    "9223372036854775808",
    "18446744073709551615",
    "99999999999999999999999",
];

/// A checksum to repair after a mutation, so that the mutation is reached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    None,
    /// Checksums of a PNG's chunks.
    Png,
    /// Checksums of a tar file's headers.
    Tar,
    /// A compressed element of a MATLAB file: the mutation is applied to its inflated data.
    Matlab,
}

/// The random generator of mutation `number` of a kind.
pub fn random(seed: u64, kind: &str, number: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&number.to_le_bytes());
    kind.bytes().enumerate().for_each(|(at, byte)| key[16 + at % 16] ^= byte.rotate_left(at as u32 / 16));
    ChaCha8Rng::from_seed(key)
}

pub fn number(random: &mut ChaCha8Rng) -> &'static str {
    NUMBERS.choose(random).expect("numbers")
}

/// Applies one to three mutations to a file; with `is_text`, mutations of numbers are as frequent as all others.
pub fn mutate(file: &[u8], is_text: bool, checksums: Checksums, random: &mut ChaCha8Rng) -> Vec<u8> {
    let mends = checksums != Checksums::None && random.random_bool(0.7);
    if mends && checksums == Checksums::Matlab {
        return matlab(file, random).unwrap_or_else(|| file.to_vec());
    }
    let mut bytes = file.to_vec();
    for _ in 0..random.random_range(1..=3) {
        if is_text && random.random_bool(0.5) {
            replace_number(&mut bytes, random);
        } else {
            damage(&mut bytes, random);
        }
    }
    match checksums {
        Checksums::Png if mends => mend_png(&mut bytes),
        Checksums::Tar if mends => mend_tar(&mut bytes),
        _ => {}
    }
    bytes
}

/// One mutation of bytes.
fn damage(bytes: &mut Vec<u8>, random: &mut ChaCha8Rng) {
    if bytes.is_empty() {
        bytes.extend(std::iter::repeat_with(|| random.random::<u8>()).take(16));
        return;
    }
    let length = bytes.len();
    // Headers matter most: half of all positions are among the first bytes.
    let near = if random.random_bool(0.5) { length.min(256) } else { length };
    let at = random.random_range(0..near);
    let end = (at + random.random_range(1..=64)).min(length);
    match random.random_range(0..9) {
        0 | 1 => bytes[at] ^= 1 << random.random_range(0..8),
        2 => bytes[at] = *[0, 0xff, 0x7f, 0x80, b'0', b'"', b'{'].choose(random).expect("bytes"),
        3 => {
            let byte = random.random();
            bytes[at..end].fill(byte);
        }
        4 => bytes.truncate(at),
        5 => drop(bytes.drain(at..end)),
        6 => {
            let run = bytes[at..end].to_vec();
            let to = random.random_range(0..=length);
            bytes.splice(to..to, run);
        }
        7 => {
            let from = random.random_range(0..length);
            let run = bytes[from..(from + end - at).min(length)].to_vec();
            let end = (at + run.len()).min(length);
            bytes[at..end].copy_from_slice(&run[..end - at]);
        }
        _ => {
            let value: u64 = *[0, 1, 0x7fff_ffff, 0xffff_ffff, 1 << 40, u64::MAX].choose(random).expect("values");
            let width = *[2, 4, 8].choose(random).expect("widths");
            let little = value.to_le_bytes();
            let mut word = little[..width].to_vec();
            if random.random() {
                word.reverse();
            }
            let end = (at + width).min(length);
            bytes[at..end].copy_from_slice(&word[..end - at]);
        }
    }
}

/// Replaces a number in the text by another one.
fn replace_number(bytes: &mut Vec<u8>, random: &mut ChaCha8Rng) {
    let is_part = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'e');
    let starts: Vec<usize> = (0..bytes.len())
        .filter(|&at| {
            bytes[at].is_ascii_digit() && (at == 0 || !is_part(bytes[at - 1]) && !bytes[at - 1].is_ascii_alphabetic())
        })
        .collect();
    let Some(&start) = starts.choose(random) else { return damage(bytes, random) };
    let end = (start..bytes.len()).find(|&at| !is_part(bytes[at])).unwrap_or(bytes.len());
    bytes.splice(start..end, number(random).bytes());
}

fn mend_png(bytes: &mut [u8]) {
    let mut at = 8;
    while let Some(length) = bytes.get(at..at + 4).map(|word| u32::from_be_bytes(word.try_into().expect("four"))) {
        let end = at + 8 + length as usize;
        let Some(chunk) = bytes.get(at + 4..end) else { return };
        let mut sum = Crc::new();
        sum.update(chunk);
        if let Some(place) = bytes.get_mut(end..end + 4) {
            place.copy_from_slice(&sum.sum().to_be_bytes());
        }
        at = end + 4;
    }
}

fn mend_tar(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512).filter(|block| block[257..].starts_with(b"ustar")) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// Inflates the first element, mutates it and compresses it again.
fn matlab(file: &[u8], random: &mut ChaCha8Rng) -> Option<Vec<u8>> {
    use std::io::{Read, Write};
    let (head, rest) = file.split_at_checked(128)?;
    let mut inner = Vec::new();
    flate2::read::ZlibDecoder::new(rest.get(8..)?).read_to_end(&mut inner).ok()?;
    damage(&mut inner, random);
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&inner).ok()?;
    let data = encoder.finish().ok()?;
    let tag = [15u32.to_le_bytes(), (data.len() as u32).to_le_bytes()].concat();
    Some([head, &tag, &data].concat())
}
