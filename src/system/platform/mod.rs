//! File-system calls that operating systems do differently. Each has a file with the functions that `unix` documents.
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
pub use unix::{exchange, hold_folder, is_held, is_link_loop, persist, read_exact_at, rename, set_mode, sync_folder};
#[cfg(windows)]
pub use windows::{
    exchange, hold_folder, is_held, is_link_loop, persist, read_exact_at, rename, set_mode, sync_folder,
};

use std::fs::{File, TryLockError};

/// Locks a file that is open; false where another process has locked it. Without locks, as some network file systems
/// are, every file counts as locked by this process.
pub fn lock(file: &File) -> bool {
    !matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    #[test]
    fn positioned_reads_fill_or_fail() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a");
        std::fs::write(&path, b"0123456789").expect("write");
        let file = File::open(&path).expect("open");
        let mut bytes = [0; 4];
        read_exact_at(&file, &mut bytes, 6).expect("read");
        assert_eq!(&bytes, b"6789");
        read_exact_at(&file, &mut bytes, 1).expect("read");
        assert_eq!(&bytes, b"1234");
        let problem = read_exact_at(&file, &mut bytes, 7).expect_err("three bytes are there");
        assert_eq!(problem.kind(), ErrorKind::UnexpectedEof);
        assert_eq!(read_exact_at(&file, &mut [], 99).map_err(|problem| problem.kind()), Ok(()));
    }

    #[test]
    fn a_held_folder_can_be_renamed_and_is_free_when_it_is_let_go() {
        let folder = tempfile::tempdir().expect("folder");
        let (before, after) = (folder.path().join("before"), folder.path().join("after"));
        std::fs::create_dir(&before).expect("folder");
        std::fs::write(before.join("a"), "a").expect("write");
        assert!(!is_held(&before));
        let held = hold_folder(&before).expect("hold").expect("free");
        assert!(is_held(&before));
        std::fs::rename(&before, &after).expect("rename");
        assert!(is_held(&after));
        drop(held);
        assert!(!is_held(&after));
        sync_folder(&after).expect("sync");
        assert!(hold_folder(&before).is_err());
    }
}
