//! Windows; `unix` says what each function does.
use super::lock;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::windows::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;
use tempfile::NamedTempFile;

// Of winnt.h and winbase.h.
const DELETE: u32 = 0x0001_0000;
const FILE_SHARE_READ: u32 = 1;
const FILE_SHARE_WRITE: u32 = 2;
const FILE_SHARE_DELETE: u32 = 4;
const FILE_FLAG_BACKUP_SEMANTICS: u32 = 0x0200_0000;
// Of winerror.h.
const ERROR_ACCESS_DENIED: i32 = 5;
const ERROR_SHARING_VIOLATION: i32 = 32;
const ERROR_CANT_RESOLVE_FILENAME: i32 = 1921;

/// The file's own position moves, which std's positioned reads on Unix leave alone.
pub fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.seek_read(bytes, offset) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                bytes = &mut bytes[count..];
                offset += count as u64;
            }
            Err(problem) if problem.kind() == ErrorKind::Interrupted => {}
            Err(problem) => return Err(problem),
        }
    }
    Ok(())
}

/// Folders have no locks here. Instead the holder's handle may delete the folder and lets others do so, and who asks
/// whether it is held opens it without letting others delete it, which is refused while there is such a handle.
pub fn hold_folder(path: &Path) -> io::Result<Option<File>> {
    match open_folder(path, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE) {
        Err(problem) if problem.raw_os_error() == Some(ERROR_SHARING_VIOLATION) => Ok(None),
        opened => opened.map(Some),
    }
}

pub fn is_held(path: &Path) -> bool {
    match path.is_dir() {
        true => open_folder(path, FILE_SHARE_READ | FILE_SHARE_WRITE).is_err(),
        false => File::open(path).map_or(true, |file| !lock(&file)),
    }
}

fn open_folder(path: &Path, share: u32) -> io::Result<File> {
    File::options().access_mode(DELETE).share_mode(share).custom_flags(FILE_FLAG_BACKUP_SEMANTICS).open(path)
}

/// The file system's journal keeps names; there is no call that a user without special rights could make.
pub fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    despite_scanners(|| std::fs::rename(from, to))
}

pub fn persist(temporary: NamedTempFile, to: &Path) -> io::Result<()> {
    let mut left = Some(temporary);
    despite_scanners(|| match left.take().map(|temporary| temporary.persist(to)) {
        Some(Err(problem)) => {
            left = Some(problem.file);
            Err(problem.error)
        }
        _ => Ok(()),
    })
}

/// Nothing can be renamed while a virus scanner or an indexer looks at it, which they do to what was just written: tries
/// again for three seconds.
fn despite_scanners(mut rename: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    for milliseconds in [10, 50, 200, 750, 2000] {
        match rename() {
            Err(problem) if matches!(problem.raw_os_error(), Some(ERROR_ACCESS_DENIED | ERROR_SHARING_VIOLATION)) => {
                std::thread::sleep(Duration::from_millis(milliseconds));
            }
            outcome => return outcome,
        }
    }
    rename()
}

/// There is no such call.
pub fn exchange(_: &Path, _: &Path) -> bool {
    false
}

/// Files and folders take the rights of the folder that they are made in.
pub fn set_mode(_: &mut tempfile::Builder, _: u32) {}

pub fn is_link_loop(number: i32) -> bool {
    number == ERROR_CANT_RESOLVE_FILENAME
}
