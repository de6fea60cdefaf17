//! Whether something is there. What may not be read is not missing: unlike `Path::exists` and its like, these tell
//! the system's reason.
use crate::system::error::{Error, Result};
use std::fs::Metadata;
use std::io::{self, ErrorKind};
use std::path::Path;

/// Whether there is a file at `path`, or a link that leads to one.
///
/// # Errors
/// The system does not say: a folder on the way may not be searched or is none, links lead in a circle, …
pub fn is_file(path: &Path) -> Result<bool> {
    Ok(look(path)?.is_some_and(|found| found.is_file()))
}

/// Whether there is a folder at `path`, or a link that leads to one.
pub fn is_folder(path: &Path) -> Result<bool> {
    Ok(look(path)?.is_some_and(|found| found.is_dir()))
}

/// Whether there is anything at `path`, or at the end of a link there.
pub fn exists(path: &Path) -> Result<bool> {
    Ok(look(path)?.is_some())
}

fn look(path: &Path) -> Result<Option<Metadata>> {
    find(path).map_err(|problem| Error::file(path, problem))
}

/// What is at `path`, or what a link there leads to; nothing where nothing is.
///
/// # Errors
/// As [`is_file`].
pub fn find(path: &Path) -> io::Result<Option<Metadata>> {
    let named = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    match std::fs::metadata(named) {
        Ok(found) => Ok(Some(found)),
        Err(problem) if problem.kind() == ErrorKind::NotFound => Ok(None),
        Err(problem) => Err(problem),
    }
}

/// Whether `path` is to be read as a file: it is one, or reading it will tell the system's reason.
pub fn may_be_file(path: &Path) -> bool {
    is_file(path).unwrap_or(true)
}

/// The folder that a glob pattern names before its first wildcard; the working folder is empty.
pub fn fixed_part(pattern: &str) -> &Path {
    let wild = pattern.find(['*', '?', '[']).unwrap_or(pattern.len());
    Path::new(&pattern[..pattern[..wild].rfind(std::path::is_separator).map_or(0, |slash| slash + 1)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether there is a file, a folder, anything.
    fn all(path: &Path) -> [Result<bool, String>; 3] {
        [is_file, is_folder, exists].map(|ask| ask(path).map_err(|e| e.to_string()))
    }

    #[test]
    fn files_and_folders_are_told_apart() {
        let folder = tempfile::tempdir().expect("folder");
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("file"), "").expect("write");

        let all = |name: &str| all(&path(name));
        assert_eq!(all("file"), [Ok(true), Ok(false), Ok(true)]);
        assert_eq!(all(""), [Ok(false), Ok(true), Ok(true)]);
        assert_eq!(all("gone"), [Ok(false), Ok(false), Ok(false)]);
        assert_eq!(fixed_part("data/sa1b/sa_*.tar"), Path::new("data/sa1b/"));
        assert_eq!((fixed_part("sa_[01].tar"), fixed_part("/d?/x")), (Path::new(""), Path::new("/")));
        assert!(may_be_file(&path("file")));
        assert!(!may_be_file(folder.path()) && !may_be_file(&path("gone")));
    }

    #[cfg(unix)]
    #[test]
    fn what_cannot_be_looked_at_is_not_missing() {
        let folder = tempfile::tempdir().expect("folder");
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("file"), "").expect("write");
        std::os::unix::fs::symlink("circle", path("circle")).expect("link");
        std::os::unix::fs::symlink("nowhere", path("dangling")).expect("link");
        let long = "x".repeat(300);

        assert_eq!(all(&path("dangling")), [Ok(false), Ok(false), Ok(false)]);
        for (name, reason) in
            [("file/x", "Not a directory"), ("circle", "symbolic links"), (long.as_str(), "File name too long")]
        {
            for answer in all(&path(name)) {
                assert!(answer.as_ref().is_err_and(|text| text.contains(reason) && text.contains(name)), "{answer:?}");
            }
        }
        assert!(may_be_file(&path("circle")));
    }
}
