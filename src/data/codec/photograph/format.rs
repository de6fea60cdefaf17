//! Formats of picture files, told by their first bytes: what a file is called does not matter.

use crate::system::file_kind;

/// Ends of the names of picture files that are read, in lower case.
pub const EXTENSIONS: [&str; 15] =
    ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "dib", "tif", "tiff", "pnm", "ppm", "pgm", "pbm", "gif"];

/// Ends of the names of pictures in formats that are not read, in lower case: such a file is data that somebody meant to
/// be used.
pub const UNREAD_EXTENSIONS: [&str; 20] = [
    "heic", "heif", "hif", "avif", "jxl", "jp2", "j2k", "psd", "svg", "exr", "hdr", "tga", "qoi", "ico", "dng", "cr2",
    "cr3", "nef", "arw", "raf",
];

/// A format that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PictureFormat {
    Jpeg,
    Png,
    WebP,
    Bmp,
    Tiff,
    Pnm,
    Gif,
}

/// The format of a file with these bytes.
///
/// # Errors
/// It is none that is read; one that is known is named.
pub(super) fn recognise(bytes: &[u8]) -> Result<PictureFormat, String> {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let behind = |at: usize, magic: &[u8]| bytes.get(at..).is_some_and(|rest| rest.starts_with(magic));
    Ok(match () {
        () if starts(b"\xff\xd8") => PictureFormat::Jpeg,
        () if starts(b"\x89PNG\r\n\x1a\n") => PictureFormat::Png,
        () if starts(b"RIFF") && behind(8, b"WEBP") => PictureFormat::WebP,
        () if starts(b"GIF87a") || starts(b"GIF89a") => PictureFormat::Gif,
        () if [&b"II*\0"[..], b"MM\0*", b"II+\0", b"MM\0+"].into_iter().any(starts) => PictureFormat::Tiff,
        () if starts(b"BM") => PictureFormat::Bmp,
        () if matches!(bytes, [b'P', b'1'..=b'6', next, ..] if next.is_ascii_whitespace() || *next == b'#') => {
            PictureFormat::Pnm
        }
        () if bytes.is_empty() => return Err("no readable image: the file is empty".into()),
        () => {
            return Err(match (unread(bytes), file_kind::of(bytes)) {
                (Some(name), _) => format!("{name} is not read: convert it to JPEG, PNG or WebP"),
                (None, Some(kind)) => format!("no readable image: The image format could not be determined: {kind}"),
                (None, None) => "no readable image: The image format could not be determined".into(),
            });
        }
    })
}

/// The name of a known format that is not read.
fn unread(bytes: &[u8]) -> Option<&'static str> {
    // ISO media: the major brand, a version, the compatible brands.
    if let [a, b, c, d, b'f', b't', b'y', b'p', ..] = *bytes {
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let brands = || bytes.get(8..length.min(bytes.len())).unwrap_or_default().chunks_exact(4);
        let has = |names: &[&[u8]]| brands().any(|brand| names.contains(&brand));
        return match () {
            () if has(&[b"avif", b"avis"]) => Some("AVIF"),
            () if has(&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"]) => Some("HEIC"),
            () if has(&[b"crx "]) => Some("Canon's raw format CR3"),
            () => Some("a video or another ISO media file"),
        };
    }
    let known: [(&[u8], &str); 10] = [
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL ", "JPEG XL"),
        (b"\0\0\0\x0cjP  ", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"8BPS", "PSD"),
        (b"v/1\x01", "OpenEXR"),
        (b"#?RADIANCE", "Radiance HDR"),
        (b"qoif", "QOI"),
        (b"<svg", "SVG"),
        (b"%PDF", "PDF"),
    ];
    known.into_iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, name)| name)
}
