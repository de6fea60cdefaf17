//! The library's error: what went wrong, in which file, at which place.
use super::printable::printable_path;
use std::path::{Path, PathBuf};

/// Everything that can fail. `Usage` ends the program with status 2, all others with 1.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// Wrong usage or configuration. One or more lines, each naming file, line and column where there is one.
    #[error("{0}")]
    Usage(String),
    /// Something outside is wrong: the file, and what about it (with the place in it, expected and found).
    #[error("{}: {problem}", printable_path(path))]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Anything else that cannot go on.
    #[error("{0}")]
    Failed(String),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The exit status of a program that fails with it.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            _ => 1,
        }
    }

    /// An error about the file at `path`; `problem` is anything printable, such as an `io::Error`.
    pub fn file(path: impl AsRef<Path>, problem: impl std::fmt::Display) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), problem: problem.to_string() }
    }
}
