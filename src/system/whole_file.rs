//! Files that are whole or absent, whatever happens while they are written.
//!
//! What is being written lies beside its place as `.writing-NAME-…`, locked by the process that writes it. A process
//! that is killed leaves it there, unlocked: the next one that writes the same removes it.
use crate::system::error::{Error, Result};
use crate::system::{paths, platform};
pub use platform::sync_folder as sync;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// What the names of files and folders that are being written begin with.
pub const WRITING: &str = ".writing-";
/// Bytes of a name that the name of its temporary file repeats: file systems end names at 255.
const REPEATED: usize = 180;

/// Finds out before long work that its result could not be written to `file`; leaves nothing behind, and removes what a
/// killed process that wrote the same file has left.
///
/// # Errors
/// Says why not.
pub fn check_writable(file: &Path) -> Result<()> {
    let failed = |problem: &dyn std::fmt::Display| Error::file(file, format!("cannot write: {problem}"));
    if paths::find(file).map_err(|e| failed(&e))?.is_some_and(|found| found.is_dir()) {
        return Err(failed(&"it is a folder"));
    }
    sweep_beside(file)?;
    // The nearest folder above that exists; those below it will be made.
    let mut folder = file.parent();
    while let Some(missing) = folder
        && paths::find(missing).map_err(|e| failed(&e))?.is_none()
    {
        folder = missing.parent();
    }
    let folder = folder.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    temporary(folder, file).map_err(|e| failed(&e))?;
    Ok(())
}

/// Writes a file so that it is whole or absent: to a temporary file beside it, synced, then renamed over it.
pub fn write_atomically(file: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let folder = folder_of(file);
    let write = || -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let mut out = io::BufWriter::new(temporary(folder, file)?);
        fill(&mut out)?;
        let temporary = out.into_inner().map_err(|e| e.into_error())?;
        temporary.as_file().sync_all()?;
        platform::persist(temporary, file)?;
        sync(folder)
    };
    write().map_err(|e| Error::file(file, format!("cannot write: {e}")))
}

/// A temporary file in `folder` for what will be `file`, locked.
fn temporary(folder: &Path, file: &Path) -> io::Result<NamedTempFile> {
    let prefix = prefix(file);
    let mut builder = tempfile::Builder::new();
    // As other programs' files: readable by whoever the umask lets, not by the owner alone.
    platform::set_mode(builder.prefix(&prefix), 0o666);
    loop {
        let temporary = builder.tempfile_in(folder)?;
        if platform::lock(temporary.as_file()) && is_at(temporary.as_file(), temporary.path())? {
            return Ok(temporary);
        }
        // Another process took it for a leftover before it was locked.
    }
}

/// A folder that is filled beside what it will become; removed with the value, unless that was kept.
pub struct Aside {
    folder: tempfile::TempDir,
    _lock: File,
}

impl Aside {
    /// A new folder beside `target`, in a folder that is there.
    pub fn beside(target: &Path) -> io::Result<Self> {
        let prefix = prefix(target);
        let mut builder = tempfile::Builder::new();
        platform::set_mode(builder.prefix(&prefix), 0o777);
        loop {
            let folder = builder.tempdir_in(folder_of(target))?;
            if let Some(lock) = platform::hold_folder(folder.path())?
                && is_at(&lock, folder.path())?
            {
                return Ok(Self { folder, _lock: lock });
            }
        }
    }

    /// The temporary file or folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Renames the folder to `target`, which must not be there, or be an empty folder.
    pub fn persist(self, target: &Path) -> io::Result<()> {
        platform::rename(self.path(), target)?;
        // It is no longer there to be removed.
        let _ = self.folder.keep();
        sync(folder_of(target))
    }
}

/// Removes what killed processes have left of `target`, a file or a folder, beside it. What another process is writing
/// now stays.
pub fn sweep_beside(target: &Path) -> Result<()> {
    let prefix = prefix(target);
    sweep_where(folder_of(target), |name| name.starts_with(&prefix))
}

/// Removes all that killed processes have left half-written in `folder`, not in the folders below it. What another
/// process is writing now stays. Nothing is to be done where there is no such folder.
pub fn sweep(folder: &Path) -> Result<()> {
    sweep_where(folder, |name| name.starts_with(WRITING))
}

fn sweep_where(folder: &Path, is_leftover: impl Fn(&str) -> bool) -> Result<()> {
    use io::ErrorKind::{NotADirectory, PermissionDenied};
    // A folder that may not be read can be written all the same.
    if std::fs::read_dir(folder).is_err_and(|e| matches!(e.kind(), NotADirectory | PermissionDenied)) {
        return Ok(());
    }
    for path in entries(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if is_leftover(&name) && !platform::is_held(&path) {
            remove_if_there(&path)?;
        }
    }
    Ok(())
}

/// Removes a file or a folder so that it is there whole or not at all: a folder is renamed to a leftover first.
pub fn remove(path: &Path) -> Result<()> {
    if !paths::is_folder(path)? {
        return remove_if_there(path);
    }
    remove_if_there(&set_aside(path)?)
}

/// Makes a folder a leftover, whose name is returned.
fn set_aside(folder: &Path) -> Result<PathBuf> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let aside = folder.with_file_name(format!("{WRITING}removed-{name}"));
    remove_if_there(&aside)?;
    rename(folder, &aside)?;
    Ok(aside)
}

/// Puts the folder `new` in the place of `folder`, which may be there; at no time is there neither, where the file
/// system can exchange two names.
pub fn replace_folder(new: &Path, folder: &Path) -> Result<()> {
    if !paths::exists(folder)? {
        rename(new, folder)?;
    } else if platform::exchange(new, folder) {
        // What was there has the other name now.
        remove_if_there(new)?;
    } else {
        let old = set_aside(folder)?;
        if let Err(problem) = rename(new, folder) {
            // Rather the old one than none.
            let _ = rename(&old, folder);
            return Err(problem);
        }
        remove_if_there(&old)?;
    }
    sync(folder_of(folder)).map_err(|e| Error::file(folder, format!("cannot write: {e}")))
}

/// Renames a file or folder.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    platform::rename(from, to).map_err(|e| Error::file(from, format!("cannot rename to {}: {e}", to.display())))
}

/// Removes a file, or a folder with all that is in it, bit by bit.
pub fn remove_if_there(path: &Path) -> Result<()> {
    let is_folder = path.is_dir() && !path.is_symlink();
    let removed = if is_folder { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file(path, format!("cannot remove: {e}"))),
        _ => Ok(()),
    }
}

/// What is in a folder; nothing if it is not there.
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e: io::Error| Error::file(folder, e);
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(failed(e)),
    }
}

/// The folder that `path` lies in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// What the names of temporary files and folders for `target` begin with.
fn prefix(target: &Path) -> String {
    let name = target.file_name().unwrap_or(OsStr::new("")).to_string_lossy();
    let end = name.floor_char_boundary(REPEATED);
    format!("{WRITING}{}-", &name[..end])
}

/// Whether `file` is what lies at `path` now.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = same_file::Handle::from_file(file.try_clone()?)?;
    match same_file::Handle::from_path(path) {
        Ok(there) => Ok(there == held),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Bytes free for this user on the disk that `folder` is on, where it can be known.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    fs4::available_space(folder).ok()
}
