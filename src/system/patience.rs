//! Reading with patience: an error of the machine is not one of the data. It is tried again a few times, and what does
//! not pass ends the run instead of counting as a damaged file.
use crate::system::platform::is_link_loop;
use std::io::{self, Read, Seek, SeekFrom};
use std::time::Duration;

/// Pauses before each further try: together shorter than a person notices, longer than a hiccup of a network's disk.
const PAUSES: [Duration; 3] = [Duration::from_millis(20), Duration::from_millis(100), Duration::from_millis(500)];

/// Whether an error says something about the machine (a disk that fails, too many open files, no memory, a network's disk
/// that is gone) and nothing about the file that was read.
///
/// A file can be absent, not a file, forbidden or oddly named: those errors are its own, and so is whatever is wrong with
/// its bytes. Every other error of the operating system is the machine's.
pub fn is_of_the_machine(problem: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    let own = [
        Kind::NotFound,
        Kind::NotADirectory,
        Kind::IsADirectory,
        Kind::PermissionDenied,
        Kind::InvalidFilename,
        Kind::InvalidInput,
        Kind::InvalidData,
        Kind::UnexpectedEof,
        Kind::FileTooLarge,
    ];
    let waiting = [
        Kind::Interrupted,
        Kind::TimedOut,
        Kind::WouldBlock,
        Kind::OutOfMemory,
        Kind::StorageFull,
        Kind::NetworkDown, // object storage, for good
    ];
    match problem.raw_os_error() {
        Some(number) => !is_link_loop(number) && !own.contains(&problem.kind()),
        None => waiting.contains(&problem.kind()),
    }
}

/// Does `work`, again after a short pause where the machine failed it, a few times.
///
/// # Errors
/// Those of the last try.
pub fn patiently<T>(mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for pause in PAUSES {
        match work() {
            Err(problem) if is_of_the_machine(&problem) => std::thread::sleep(pause),
            outcome => return outcome,
        }
    }
    work()
}

/// A reader whose reads are tried again.
pub struct Patient<R>(pub R);

impl<R: Read> Read for Patient<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        patiently(|| self.0.read(bytes))
    }
}

impl<R: Seek> Seek for Patient<R> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        patiently(|| self.0.seek(position))
    }
}

/// Opens a file for patient reading.
///
/// # Errors
/// Those of the operating system.
pub fn open(path: &std::path::Path) -> io::Result<Patient<std::fs::File>> {
    patiently(|| std::fs::File::open(path)).map(Patient)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    const OF_THE_MACHINE: [i32; 7] =
        [libc::EIO, libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ESTALE, libc::EINTR, libc::ETIMEDOUT];
    #[cfg(unix)]
    const OF_THE_FILE: [i32; 5] = [libc::ENOENT, libc::EISDIR, libc::EACCES, libc::ENAMETOOLONG, libc::ELOOP];

    /// ERROR_IO_DEVICE, _TOO_MANY_OPEN_FILES, _NOT_ENOUGH_MEMORY, _SHARING_VIOLATION, _NETNAME_DELETED and _SEM_TIMEOUT.
    #[cfg(windows)]
    const OF_THE_MACHINE: [i32; 6] = [1117, 4, 8, 32, 64, 121];
    /// ERROR_FILE_NOT_FOUND, _PATH_NOT_FOUND, _ACCESS_DENIED, _INVALID_NAME and _CANT_RESOLVE_FILENAME.
    #[cfg(windows)]
    const OF_THE_FILE: [i32; 5] = [2, 3, 5, 123, 1921];

    /// Fails so many times with an error of this number, then reads.
    struct Failing {
        times: usize,
        number: i32,
    }

    impl Read for Failing {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            match self.times {
                0 => Ok(bytes.len()),
                _ => {
                    self.times -= 1;
                    Err(io::Error::from_raw_os_error(self.number))
                }
            }
        }
    }

    #[test]
    fn errors_of_the_machine_pass_if_they_are_few() {
        let read = |times, number| Patient(Failing { times, number }).read(&mut [0; 4]).map_err(|e| e.raw_os_error());
        for number in OF_THE_MACHINE {
            assert_eq!(read(PAUSES.len(), number), Ok(4), "{number}");
        }
        assert_eq!(read(PAUSES.len() + 1, OF_THE_MACHINE[0]), Err(Some(OF_THE_MACHINE[0])));
        for number in OF_THE_FILE {
            assert_eq!(read(1, number), Err(Some(number)));
        }
        assert!(!is_of_the_machine(&io::Error::new(io::ErrorKind::InvalidData, "bad bytes")));
        assert!(!is_of_the_machine(&io::Error::other("bad bytes")));
    }
}
