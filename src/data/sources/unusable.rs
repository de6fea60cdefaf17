//! Why something cannot be had: its own fault, or the machine's.
use crate::Error;
use crate::system::patience::is_of_the_machine;
use std::{fmt, io, path::Path};

/// Why a sample (or, with `B`, a part of a shard) cannot be had.
#[derive(Debug)]
pub enum Unusable<B = String> {
    /// There is something wrong with its files: it is passed over and counted.
    Broken(B),
    /// There is something wrong with the run or the machine: no sample is to be passed over for that.
    Fatal(Error),
}

impl Unusable {
    /// What came of reading `path`.
    pub fn reading(path: &Path, problem: io::Error) -> Self {
        match is_of_the_machine(&problem) {
            true => Self::Fatal(Error::file(path, problem)),
            false => Self::Broken(format!("{}: {problem}", path.display())),
        }
    }

    /// What came of reading one of the run's own temporary files, which no sample can be blamed for.
    pub fn temporary(problem: io::Error) -> Self {
        Self::Fatal(Error::Failed(format!("temporary file: {problem}")))
    }
}

impl From<String> for Unusable {
    fn from(reason: String) -> Self {
        Self::Broken(reason)
    }
}

impl From<&str> for Unusable {
    fn from(reason: &str) -> Self {
        Self::Broken(reason.to_string())
    }
}

impl<B> From<Error> for Unusable<B> {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Broken(reason) => f.write_str(reason),
            Self::Fatal(error) => error.fmt(f),
        }
    }
}
