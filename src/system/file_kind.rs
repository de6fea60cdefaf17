//! What a file is that was meant to be a picture, a text or a shard, and what to do about it.

/// Says so where the first `bytes` of a file show it.
pub fn of(bytes: &[u8]) -> Option<&'static str> {
    let text = bytes.trim_ascii_start();
    let begins = |word: &[u8]| text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
    match () {
        () if begins(b"version https://git-lfs") => {
            Some("the file is a pointer of Git LFS, and its content was not downloaded: git lfs pull")
        }
        () if begins(b"<!doctype html") || begins(b"<html") => {
            Some("the file is a web page, such as servers answer where a download fails")
        }
        () if bytes.starts_with(b"\x1f\x8b") => Some("the file is compressed by gzip: unpack it"),
        () if bytes.starts_with(b"PK\x03\x04") => {
            Some("the file is a zip archive (or a spreadsheet), which is not read here")
        }
        () if bytes.starts_with(b"PAR1\x15") => {
            Some("the file is Parquet, which is read where its name ends in .parquet")
        }
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn files_that_are_something_else_are_told() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
        assert!(of(pointer).is_some_and(|kind| kind.contains("git lfs pull")));
        for page in [&b"\r\n<!DOCTYPE HTML><p>"[..], b"<html>"] {
            assert!(of(page).is_some_and(|kind| kind.contains("web page")));
        }
        assert!([&b"\x1f\x8b\x08\0"[..], b"PK\x03\x04", b"PAR1\x15"].iter().all(|bytes| of(bytes).is_some()));
        assert!([&b""[..], b"{\"a\": 1}", b"PAR1 a cat", b"\xff\xd8\xff"].iter().all(|bytes| of(bytes).is_none()));
    }
}
