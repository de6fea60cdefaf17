//! Why a sample cannot be used: its files are broken, or the run or machine failed.
use crate::Error;
use crate::system::patience::is_of_the_machine;
use std::{fmt, io, path::Path};

/// Why a sample (or, with `B`, a shard) cannot be used.
#[derive(Debug)]
pub enum Unusable<B = String> {
    /// Its files are at fault: it is skipped and counted.
    Broken(B),
    /// The run or the machine is at fault: the run stops.
    Fatal(Error),
}

impl Unusable {
    /// Classifies an error from reading `path`.
    pub fn reading(path: &Path, problem: io::Error) -> Self {
        match is_of_the_machine(&problem) {
            true => Self::Fatal(Error::file(path, problem)),
            false => Self::Broken(format!("{}: {problem}", path.display())),
        }
    }

    /// An error from the run's own temporary files, always fatal.
    pub fn temporary(problem: io::Error) -> Self {
        Self::Fatal(Error::Failed(format!("temporary file: {problem}")))
    }
}

/// Tells what is broken, and counted, from the errors that end the run.
pub fn unless_fatal<T, B>(outcome: Result<T, Unusable<B>>) -> crate::Result<Result<T, B>> {
    match outcome {
        Ok(found) => Ok(Ok(found)),
        Err(Unusable::Broken(reason)) => Ok(Err(reason)),
        Err(Unusable::Fatal(error)) => Err(error),
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
