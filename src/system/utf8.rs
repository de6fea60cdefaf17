//! Text from outside is UTF-8: a byte-order mark is dropped, and UTF-16 is refused by its name.
use super::file_kind;
use std::io::{self, Cursor, Read};

/// The byte-order mark, which Windows editors put before a text. It is no part of it.
pub const MARK: char = '\u{feff}';

const UTF_16: &str = "the text is UTF-16 or UTF-32, expected UTF-8: save it as UTF-8";

/// A text of a file.
///
/// # Errors
/// It is not UTF-8, and where it stops being that.
pub fn text(bytes: Vec<u8>) -> Result<String, String> {
    if let Some(kind) = file_kind::of(&bytes) {
        return Err(kind.into());
    }
    if is_utf_16(&bytes) || bytes.contains(&0) {
        return Err(UTF_16.into());
    }
    let text = String::from_utf8(bytes)
        .map_err(|problem| format!("the text is no UTF-8 at byte {}", problem.utf8_error().valid_up_to()))?;
    Ok(text.strip_prefix(MARK).map(str::to_owned).unwrap_or(text))
}

/// A reader of a text file behind its byte-order mark.
///
/// # Errors
/// The file cannot be read, or begins as UTF-16 does.
pub fn without_mark<R: Read>(mut reader: R) -> io::Result<impl Read> {
    let mut start = Vec::new();
    // As long as what tells a file of another kind.
    reader.by_ref().take(64).read_to_end(&mut start)?;
    if let Some(problem) = file_kind::of(&start).or(is_utf_16(&start).then_some(UTF_16)) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    if start.starts_with("\u{feff}".as_bytes()) {
        start.drain(..3);
    }
    Ok(Cursor::new(start).chain(reader))
}

/// Whether a text begins with a mark of UTF-16 or UTF-32, or with a character of two or four bytes.
fn is_utf_16(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) || bytes.iter().take(4).any(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_dropped_and_other_encodings_named() {
        assert_eq!(text("\u{feff}ä cat\r\n".into()).unwrap(), "ä cat\r\n");
        assert_eq!(text(vec![]).unwrap(), "");
        let wide = |order: fn(u16) -> [u8; 2], text: &str| text.encode_utf16().flat_map(order).collect::<Vec<u8>>();
        for bytes in [
            wide(u16::to_le_bytes, "\u{feff}a cat"),
            wide(u16::to_be_bytes, "\u{feff}a cat"),
            wide(u16::to_le_bytes, "a cat"),
            wide(u16::to_be_bytes, "a cat"),
        ] {
            assert!(text(bytes.clone()).unwrap_err().contains("UTF-16"));
            assert!(without_mark(&bytes[..]).err().unwrap().to_string().contains("UTF-16"));
        }
        assert!(text(b"caf\xe9".to_vec()).unwrap_err().contains("no UTF-8 at byte 3"));
        let mut read = String::new();
        without_mark("\u{feff}{}".as_bytes()).unwrap().read_to_string(&mut read).unwrap();
        without_mark("x".as_bytes()).unwrap().read_to_string(&mut read).unwrap();
        assert_eq!(read, "{}x");
    }
}
