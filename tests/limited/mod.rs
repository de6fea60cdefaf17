//! The real binary within 2 GB of address space, where the system has such a limit, and a limit of time.
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Memory limit for any input.
#[cfg(target_os = "linux")]
const ADDRESS_SPACE: u64 = 2_000_000_000;

/// The result of a command.
pub struct Ended {
    /// Exit status; `None` if it was ended by a signal or the time limit.
    pub status: Option<i32>,
    /// Its stderr, and how it ended if without status.
    pub said: String,
}

/// `seg4diff` in `folder`, limited, ready for arguments.
pub fn seg4diff(folder: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.current_dir(folder).env_remove("RUST_LOG").env("RAYON_NUM_THREADS", "2");
    #[cfg(target_os = "linux")]
    limit_memory(&mut command);
    command
}

#[cfg(target_os = "linux")]
fn limit_memory(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec, only a system call that is safe there.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: ADDRESS_SPACE, rlim_max: ADDRESS_SPACE };
            match libc::setrlimit(libc::RLIMIT_AS, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
}

/// Runs a command, and ends it after `seconds`.
pub fn run(command: &mut Command, seconds: u64) -> Ended {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("start");
    let mut stderr = child.stderr.take().expect("stderr");
    let reader = std::thread::spawn(move || {
        let mut said = Vec::new();
        stderr.read_to_end(&mut said).map(|_| String::from_utf8_lossy(&said).into_owned()).unwrap_or_default()
    });
    let end = Instant::now() + Duration::from_secs(seconds);
    let status = loop {
        match child.try_wait().expect("wait") {
            Some(status) => break Some(status),
            None if Instant::now() > end => {
                child.kill().expect("kill");
                child.wait().expect("wait");
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let mut said = reader.join().expect("stderr");
    match status {
        None => said += "\n(timed out)",
        Some(status) if status.code().is_none() => said += &format!("\n({status})"),
        _ => {}
    }
    Ended { status: status.and_then(|status| status.code()), said }
}
