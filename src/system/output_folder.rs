//! Folders that a command writes into over time, held by one process alone, and the lock files that see to it.
use crate::system::error::{Error, Result};
use crate::system::paths;
use crate::system::whole_file::{folder_of, is_at, sweep};
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// A lock file that this process holds. The operating system lets go of it when the process ends, however it ends; the
/// file itself is removed with the value, and that of a killed process by the next one that takes it.
pub struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Takes the lock file `path`; the folder that it lies in is made if need be.
    ///
    /// # Errors
    /// Says `busy` where another process holds it.
    pub fn take(path: &Path, busy: &str) -> Result<Self> {
        Self::acquire(path, || Err(Error::file(folder_of(path), busy)))
    }

    /// Takes the lock file `path` as soon as no other process holds it; where one does, `waiting` is called first.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn wait(path: &Path, mut waiting: impl FnMut()) -> Result<Self> {
        Self::acquire(path, || {
            waiting();
            Ok(())
        })
    }

    /// Opens and locks a file; where another process holds it, waits unless `wait` fails.
    fn acquire(path: &Path, mut wait: impl FnMut() -> Result<()>) -> Result<Self> {
        let folder = folder_of(path);
        let failed = |e: io::Error| Error::file(path, format!("cannot lock: {e}"));
        loop {
            if paths::exists(folder)? && !paths::is_folder(folder)? {
                return Err(Error::file(folder, "cannot write: it is not a folder"));
            }
            std::fs::create_dir_all(folder).map_err(|e| Error::file(folder, format!("cannot make the folder: {e}")))?;
            let file = File::options().create(true).truncate(false).write(true).open(path);
            let file = file.map_err(|e| Error::file(folder, format!("cannot write: {e}")))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    wait()?;
                    file.lock().map_err(failed)?;
                }
                Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {
                    let path = path.display();
                    tracing::warn!(
                        "{path}: this file system has no locks; see to it that no other program writes here"
                    );
                }
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            }
            // Who held it may have removed it between the opening and the locking.
            if is_at(&file, path).map_err(failed)? {
                return Ok(Self { path: path.to_path_buf(), _file: file });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Still locked: who opened the file before it went finds that it is no longer at its place.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A folder that this process alone writes into as long as this value lives.
pub struct OutputFolder {
    lock: Option<Lock>,
    /// The folders that were made for it, the innermost first.
    made: Vec<PathBuf>,
}

impl OutputFolder {
    /// Takes the folder, made if need be, and removes what a killed process has left half-written in it.
    ///
    /// # Errors
    /// Another process writes into it; it cannot be made or written.
    pub fn hold(path: &Path) -> Result<Self> {
        Self::hold_or(path, "another program is writing into this folder")
    }

    /// [`Self::hold`], where the error says `busy` if another process writes into the folder.
    pub fn hold_or(path: &Path, busy: &str) -> Result<Self> {
        let mut made = vec![];
        for folder in path.ancestors().take_while(|folder| !folder.as_os_str().is_empty()) {
            if paths::exists(folder)? {
                break;
            }
            made.push(folder.to_path_buf());
        }
        let lock = Lock::take(&path.join(".lock"), busy)?;
        let folder = Self { lock: Some(lock), made };
        sweep(path)?;
        Ok(folder)
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        drop(self.lock.take());
        // What failed before it wrote anything leaves no folder; one that holds something is not removed by this.
        for folder in &self.made {
            let _ = std::fs::remove_dir(folder);
        }
    }
}
