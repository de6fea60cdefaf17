//! How a picture is to be turned to stand upright: its EXIF orientation, found where Pillow's `ImageOps.exif_transpose`
//! finds it.
use super::format::PictureFormat;
use crate::data::codec::jpeg::application_segments;
use flate2::read::ZlibDecoder;
pub use image::metadata::Orientation;
use std::borrow::Cow;
use std::io::Read;

/// TIFF's and EXIF's tag of the orientation, and TIFF's of XMP.
const ORIENTATION: u16 = 0x112;
const XMP_TAG: u16 = 700;
/// What begins EXIF in a JPEG; other formats may repeat it.
const EXIF: &[u8] = b"Exif\0\0";
/// What begins XMP in a JPEG.
const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
/// Bytes of a PNG's compressed text that are read.
const TEXT: u64 = 4 << 20;

/// Whether it exchanges width and height.
pub fn exchanges_sides(orientation: Orientation) -> bool {
    orientation.to_exif() >= 5
}

/// Pixels, row by row, as they stand upright; `size` is width and height of `stored`.
pub fn upright<T: Copy>(orientation: Orientation, (width, height): (usize, usize), stored: &[T]) -> Vec<T> {
    let (across, down) = if exchanges_sides(orientation) { (height, width) } else { (width, height) };
    let source = |x: usize, y: usize| match orientation {
        Orientation::NoTransforms => (x, y),
        Orientation::FlipHorizontal => (width - 1 - x, y),
        Orientation::Rotate180 => (width - 1 - x, height - 1 - y),
        Orientation::FlipVertical => (x, height - 1 - y),
        Orientation::Rotate90FlipH => (y, x),
        Orientation::Rotate90 => (y, height - 1 - x),
        Orientation::Rotate270FlipH => (width - 1 - y, height - 1 - x),
        Orientation::Rotate270 => (width - 1 - y, x),
    };
    let places = (0..down).flat_map(|y| (0..across).map(move |x| source(x, y)));
    places.map(|(x, y)| stored[y * width + x]).collect()
}

/// The orientation that a file says: in EXIF, else in XMP. Damaged metadata say none.
pub(super) fn of(bytes: &[u8], format: PictureFormat) -> Orientation {
    let (exif, xmp) = match format {
        PictureFormat::Jpeg => of_jpeg(bytes),
        PictureFormat::Png => of_png(bytes),
        PictureFormat::WebP => of_webp(bytes),
        // A TIFF is what EXIF is stored as.
        PictureFormat::Tiff => {
            (Some(bytes.into()), entry(bytes, XMP_TAG).and_then(|entry| entry.bytes(bytes)).map(Cow::from))
        }
        PictureFormat::Bmp | PictureFormat::Pnm | PictureFormat::Gif => (None, None),
    };
    let said = exif.and_then(|exif| in_exif(&exif)).or_else(|| in_xmp(&xmp?));
    said.and_then(|number| Orientation::from_exif(u8::try_from(number).ok()?)).unwrap_or(Orientation::NoTransforms)
}

/// EXIF and XMP of a file, as far as it has them.
type Metadata<'a> = (Option<Cow<'a, [u8]>>, Option<Cow<'a, [u8]>>);

/// Pillow joins the EXIF of several segments, and takes the last XMP.
fn of_jpeg(bytes: &[u8]) -> Metadata<'_> {
    let (mut exif, mut xmp) = (None::<Vec<u8>>, None);
    for (_, segment) in application_segments(bytes).filter(|(marker, _)| *marker == 0xe1) {
        if let Some(part) = segment.strip_prefix(EXIF) {
            exif.get_or_insert_default().extend(part);
        } else if let Some(packet) = segment.strip_prefix(XMP) {
            xmp = Some(packet.into());
        }
    }
    (exif.map(Cow::from), xmp)
}

/// The chunk `eXIf`, wherever it stands, or ImageMagick's text with hexadecimal EXIF; XMP is a text, too.
fn of_png(bytes: &[u8]) -> Metadata<'_> {
    let (mut exif, mut raw, mut xmp) = (None, None, None);
    let mut rest = bytes.get(8..).unwrap_or_default();
    while let Some((length, behind)) = rest.split_first_chunk() {
        let length = u32::from_be_bytes(*length) as usize;
        let (Some(kind), Some(data)) = (behind.get(..4), behind.get(4..4 + length)) else { break };
        match kind {
            b"eXIf" => exif = Some(data.into()),
            b"tEXt" | b"zTXt" | b"iTXt" => match text(kind, data) {
                Some((b"Raw profile type exif", text)) => raw = from_hexadecimal(&text).map(Cow::from),
                Some((b"XML:com.adobe.xmp", text)) => xmp = Some(text.into()),
                _ => (),
            },
            _ => (),
        }
        rest = behind.get(8 + length..).unwrap_or_default();
    }
    (exif.or(raw), xmp)
}

/// Keyword and text of a PNG's text chunk.
fn text<'a>(kind: &[u8], data: &'a [u8]) -> Option<(&'a [u8], Vec<u8>)> {
    let cut = |data: &'a [u8]| {
        let end = data.iter().position(|byte| *byte == 0)?;
        Some((&data[..end], &data[end + 1..]))
    };
    let (keyword, rest) = cut(data)?;
    let (is_compressed, content) = match kind {
        b"tEXt" => (false, rest),
        b"zTXt" => (true, rest.get(1..)?),
        // flag, method, language, translated keyword
        _ => (*rest.first()? == 1, cut(cut(rest.get(2..)?)?.1)?.1),
    };
    if !is_compressed {
        return Some((keyword, content.to_vec()));
    }
    let mut inflated = Vec::new();
    ZlibDecoder::new(content).take(TEXT).read_to_end(&mut inflated).ok()?;
    Some((keyword, inflated))
}

/// What ImageMagick writes: an empty line, the kind, the length, then hexadecimal digits in lines.
fn from_hexadecimal(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let digits: String = text.split('\n').skip(3).collect();
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    (0..digits.len()).step_by(2).map(byte).collect()
}

fn of_webp(bytes: &[u8]) -> Metadata<'_> {
    let (mut exif, mut xmp) = (None, None);
    let mut rest = bytes.get(12..).unwrap_or_default();
    while let (Some(kind), Some(length)) = (rest.get(..4), rest.get(4..8).and_then(|length| length.first_chunk())) {
        let length = u32::from_le_bytes(*length) as usize;
        let data = rest.get(8..8 + length);
        match kind {
            b"EXIF" => exif = exif.or(data.map(Cow::from)),
            b"XMP " => xmp = xmp.or(data.map(Cow::from)),
            _ => (),
        }
        rest = rest.get(8 + length.next_multiple_of(2)..).unwrap_or_default();
    }
    (exif, xmp)
}

/// The orientation in EXIF, which is a TIFF without a picture.
fn in_exif(mut exif: &[u8]) -> Option<u64> {
    while let Some(rest) = exif.strip_prefix(EXIF) {
        exif = rest;
    }
    let entry = entry(exif, ORIENTATION)?;
    // Whole numbers of two or four bytes.
    (matches!(entry.kind, 3 | 4 | 8 | 9) && entry.count == 1).then_some(entry.value)
}

/// An entry of a TIFF's first directory.
pub(super) struct IfdEntry {
    kind: u16,
    count: u64,
    /// A number that stands in the entry itself, or where the values begin.
    pub value: u64,
    /// Where that stands.
    pub at: usize,
}

impl IfdEntry {
    /// Values of one byte each that stand elsewhere.
    fn bytes<'a>(&self, tiff: &'a [u8]) -> Option<&'a [u8]> {
        let start = usize::try_from(self.value).ok()?;
        let end = start.checked_add(usize::try_from(self.count).ok()?)?;
        tiff.get(start..end).filter(|_| matches!(self.kind, 1 | 7))
    }
}

/// The last entry with this tag: for Pillow, later ones replace earlier ones.
pub(super) fn entry(tiff: &[u8], tag: u16) -> Option<IfdEntry> {
    let (is_little, is_big_tiff) = match tiff.first_chunk()? {
        b"II*\0" => (true, false),
        b"MM\0*" => (false, false),
        b"II+\0" => (true, true),
        b"MM\0+" => (false, true),
        _ => return None,
    };
    let number = |at: usize, length: usize| {
        let bytes = tiff.get(at..at.checked_add(length)?)?;
        let add = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(if is_little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) })
    };
    // Bytes of a place, of the number of entries and of an entry.
    let (place, entries, size) = if is_big_tiff { (8, 8, 20) } else { (4, 2, 12) };
    let first = usize::try_from(number(if is_big_tiff { 8 } else { 4 }, place)?).ok()?;
    let count = usize::try_from(number(first, entries)?).ok()?.min(tiff.len() / size);
    let start = first + entries;
    let read = |index: usize| {
        let at = start + index * size;
        let (found, kind) = (number(at, 2)? as u16, number(at + 2, 2)? as u16);
        let count = number(at + 4, place)?;
        let inside = match kind {
            3 | 8 if count == 1 => 2,
            4 | 9 if count == 1 => 4,
            _ => place,
        };
        let at = at + 4 + place;
        Some((found, IfdEntry { kind, count, value: number(at, inside)?, at }))
    };
    (0..count).map_while(read).filter(|(found, _)| *found == tag).map(|(_, entry)| entry).last()
}

/// The digit behind `tiff:Orientation="` or `tiff:Orientation>`.
fn in_xmp(packet: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"tiff:Orientation";
    let places = packet.windows(NAME.len()).enumerate().filter(|(_, found)| *found == NAME);
    places.map(|(place, _)| &packet[place + NAME.len()..]).find_map(|behind| match behind {
        [b'=', b'"', digit @ b'0'..=b'9', ..] | [b'>', digit @ b'0'..=b'9', ..] => Some(u64::from(digit - b'0')),
        _ => None,
    })
}
