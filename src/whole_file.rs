//! Files that are whole or absent, whatever happens while they are written.
use crate::error::{Error, Result};
use crate::paths;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::Path;

/// What files and folders that are being written begin with; those of a killed run are removed when it is resumed.
pub const WRITING: &str = ".writing-";

/// Finds out before long work that its result could not be written to `file`; leaves nothing behind.
///
/// # Errors
/// Says why not.
pub fn check_writable(file: &Path) -> Result<()> {
    let failed = |problem: &dyn std::fmt::Display| Error::file(file, format!("cannot write: {problem}"));
    if paths::is_folder(file)? {
        return Err(failed(&"it is a folder"));
    }
    // The nearest folder above that exists; those below it will be made.
    let mut folder = file.parent();
    while let Some(missing) = folder
        && !paths::exists(missing)?
    {
        folder = missing.parent();
    }
    let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
    tempfile::Builder::new().prefix(WRITING).tempfile_in(folder.unwrap_or(Path::new("."))).map_err(|e| failed(&e))?;
    Ok(())
}

/// Writes a file so that it is whole or absent: to a temporary file beside it, synced, then renamed over it.
pub fn write_atomically(file: &Path, fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let folder = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        // as other programs' files: readable by whoever the umask lets, not by the owner alone
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        let temporary = tempfile::Builder::new().prefix(WRITING).permissions(mode).tempfile_in(folder)?;
        let mut out = std::io::BufWriter::new(temporary);
        fill(&mut out)?;
        let temporary = out.into_inner().map_err(|e| e.into_error())?;
        temporary.as_file().sync_all()?;
        temporary.persist(file).map_err(|e| e.error)?;
        std::fs::File::open(folder)?.sync_all()
    };
    write().map_err(|e| Error::file(file, format!("cannot write: {e}")))
}

/// Holds the file `path` for this process alone; the operating system lets go of it when the process ends, however it
/// ends.
///
/// # Errors
/// Says `busy` where another process holds it.
pub fn lock(path: &Path, busy: &str) -> Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|e| Error::file(path, format!("cannot write: {e}")))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::file(path, busy)),
        Err(TryLockError::Error(e)) => Err(Error::file(path, format!("cannot lock: {e}"))),
    }
}

/// Removes the files that a killed process left half-written in `folder`.
pub fn remove_leftovers(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|e| Error::file(folder, e))? {
        let path = entry.map_err(|e| Error::file(folder, e))?.path();
        if path.is_file() && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(WRITING)) {
            std::fs::remove_file(&path).map_err(|e| Error::file(&path, format!("cannot remove: {e}")))?;
        }
    }
    Ok(())
}

/// Bytes free for this user on the disk that `folder` is on, where it can be known.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}
