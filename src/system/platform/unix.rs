//! Linux and macOS.
use super::lock;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use tempfile::NamedTempFile;

/// Fills `bytes` from those that begin at `offset`, from any number of threads at a time.
///
/// # Errors
/// The file ends before (`UnexpectedEof`), or cannot be read.
pub fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(bytes, offset)
}

/// Holds a folder for this process until the value is dropped; it can be renamed meanwhile. None where another process
/// holds it.
///
/// # Errors
/// It cannot be opened.
pub fn hold_folder(path: &Path) -> io::Result<Option<File>> {
    let folder = File::open(path)?;
    Ok(lock(&folder).then_some(folder))
}

/// Whether a process holds the folder or has locked the file at `path`, or that cannot be known.
pub fn is_held(path: &Path) -> bool {
    File::open(path).map_or(true, |file| !lock(&file))
}

/// Brings a folder's names to the disk.
///
/// # Errors
/// Those of the operating system.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Renames a file or folder; a file that is at `to`, or an empty folder, is replaced.
///
/// # Errors
/// Those of the operating system.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)
}

/// Renames a temporary file to `to`, where a file may be. It is removed where that fails.
///
/// # Errors
/// Those of the operating system.
pub fn persist(temporary: NamedTempFile, to: &Path) -> io::Result<()> {
    temporary.persist(to).map(drop).map_err(|problem| problem.error)
}

/// Gives two files or folders each other's name in one step; false where the file system cannot.
pub fn exchange(one: &Path, other: &Path) -> bool {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).is_ok()
}

/// The mode of what `builder` makes, less the umask.
pub fn set_mode(builder: &mut tempfile::Builder, mode: u32) {
    builder.permissions(Permissions::from_mode(mode));
}

/// Whether the error with this number of the operating system is that symbolic links lead in a circle.
pub fn is_link_loop(number: i32) -> bool {
    number == rustix::io::Errno::LOOP.raw_os_error()
}
