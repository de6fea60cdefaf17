//! Shards in object storage: `s3://`, `gs://`, and `https://` on web servers, through the crate `object_store`.
//!
//! Objects are read by ranges, front to back a few blocks ahead, and never written to a file of the user. Credentials come
//! from the environment, as that crate takes them; messages hold neither them nor what a URL has behind its path.
#[cfg(feature = "object-store")]
mod answers;
#[cfg(feature = "object-store")]
mod failure;
#[cfg(feature = "object-store")]
mod find;
#[cfg(not(feature = "object-store"))]
mod not_available;
#[cfg(feature = "object-store")]
mod object;
#[cfg(feature = "object-store")]
mod recent_blocks;

#[cfg(feature = "object-store")]
pub use find::find;
#[cfg(not(feature = "object-store"))]
pub use not_available::{Object, Scan, find};
#[cfg(feature = "object-store")]
pub use object::{Object, Scan};

/// Whether an entry of `data.source` is a URL.
pub fn is_url(source: &str) -> bool {
    source.contains("://")
}

/// A URL for messages and reports: without user, password, and the signatures that may be behind a `?`. Other texts stay as
/// they are.
pub fn shown(source: &str) -> String {
    let Some((scheme, rest)) = source.split_once("://") else { return source.to_owned() };
    let rest = match scheme.to_ascii_lowercase().as_str() {
        "s3" | "gs" => rest,
        _ => rest.split(['?', '#']).next().unwrap_or_default(),
    };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = host.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_holds_no_secrets() {
        for (url, expected) in [
            ("s3://bucket/a/b.tar", "s3://bucket/a/b.tar"),
            ("s3://key:secret@bucket/a?.tar", "s3://bucket/a?.tar"),
            ("https://host/a.tar?X-Amz-Signature=secret", "https://host/a.tar"),
            ("HTTPS://user:sec@ret@host:81/a@b.tar?secret/#secret", "HTTPS://host:81/a@b.tar"),
            ("https://user:secret@host?secret", "https://host"),
            ("https://host#secret", "https://host"),
            ("data/a@b/sa_?.tar", "data/a@b/sa_?.tar"),
        ] {
            assert_eq!(shown(url), expected);
        }
    }
}
