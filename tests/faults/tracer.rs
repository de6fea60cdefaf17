//! `strace`: what system calls a command makes, and faults put into one of them.
use super::commands::{ROOT, calm};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Calls that faults are put into, and which errors; each is also a moment to be killed at.
pub const CALLS: [(&str, &[&str]); 17] = [
    ("rename", &["EIO", "ENOSPC"]),
    ("renameat", &["EIO", "ENOSPC"]),
    ("renameat2", &["EIO", "ENOSPC"]),
    ("fsync", &["EIO", "ENOSPC"]),
    ("fdatasync", &["EIO", "ENOSPC"]),
    ("mkdir", &["EIO", "ENOSPC"]),
    ("mkdirat", &["EIO", "ENOSPC"]),
    ("unlink", &["EIO"]),
    ("unlinkat", &["EIO"]),
    ("rmdir", &["EIO"]),
    ("open", &["EIO", "EMFILE"]),
    ("openat", &["EIO", "EMFILE"]),
    ("read", &["EIO"]),
    ("readv", &["EIO"]),
    ("pread64", &["EIO"]),
    ("write", &["EIO", "ENOSPC"]),
    ("pwrite64", &["EIO", "ENOSPC"]),
];
/// No command takes so long.
const LIMIT: Duration = Duration::from_secs(300);

/// What is put into the `nth` call of each thread.
#[derive(Clone, Debug)]
pub struct Fault {
    pub call: &'static str,
    pub nth: usize,
    /// None: the process is killed instead of the call.
    pub error: Option<&'static str>,
}

impl Fault {
    pub fn kind(&self) -> &'static str {
        self.error.unwrap_or("SIGKILL")
    }

    /// What the system says of its error.
    pub fn reason(&self) -> &'static str {
        match self.error {
            Some("EIO") => "Input/output error",
            Some("ENOSPC") => "No space left on device",
            Some("EMFILE") => "Too many open files",
            other => panic!("no text for {other:?}"),
        }
    }
}

/// How a command ended.
pub struct Ended {
    pub status: ExitStatus,
    pub said: String,
    /// The call that the fault was put into, as strace shows it; none where it was not reached.
    pub hit: Option<String>,
}

impl Ended {
    pub fn is_killed(&self) -> bool {
        self.status.signal() == Some(9)
    }
}

/// Whether strace is there and may trace.
pub fn is_there() -> bool {
    let traced = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    traced.is_ok_and(|status| status.success())
}

/// Runs a command and lists which calls, by name and number in their thread, are about the program's files.
pub fn calls(args: &[String], logs: &Path) -> (Ended, BTreeMap<&'static str, BTreeSet<usize>>) {
    let names: Vec<&str> = CALLS.iter().map(|(name, _)| *name).collect();
    let ended = trace(args, logs, &["-e", &format!("trace={}", names.join(","))]);
    let mut found: BTreeMap<&'static str, BTreeSet<usize>> = BTreeMap::new();
    for thread in threads(logs) {
        let mut counts = BTreeMap::new();
        for line in thread.lines() {
            let Some((name, rest)) = line.split_once('(') else { continue };
            let Some((name, _)) = CALLS.iter().find(|(known, _)| *known == name) else { continue };
            let count = counts.entry(*name).or_insert(0);
            *count += 1;
            if is_ours(rest, logs) {
                found.entry(name).or_default().insert(*count);
            }
        }
    }
    (ended, found)
}

/// Runs a command with a fault in it.
pub fn disturbed(args: &[String], logs: &Path, fault: &Fault) -> Ended {
    let Fault { call, nth, error } = fault;
    let what = error.map_or("signal=SIGKILL".to_string(), |error| format!("error={error}"));
    let (traced, inject) = (format!("trace={call}"), format!("inject={call}:{what}:when={nth}"));
    let mut ended = trace(args, logs, &["-e", &traced, "-e", &inject]);
    let injected = threads(logs).into_iter().find_map(|thread| {
        let line = thread.lines().find(|line| line.contains("(INJECTED)"));
        line.map(str::to_string)
    });
    ended.hit = match ended.is_killed() {
        true => Some(format!("{call} number {nth}")),
        false => injected,
    };
    ended
}

/// Whether a call is about files of the test or of the program, and not the system's libraries.
fn is_ours(rest: &str, logs: &Path) -> bool {
    let own = logs.parent().expect("a folder").to_string_lossy();
    let is_quoted = |path: &str| rest.contains(&format!("\"{path}")) || rest.contains(&format!("<{path}"));
    // A relative path is one from the program's root.
    let is_relative = rest.split_once(", \"").is_some_and(|(_, path)| !path.starts_with('/') && !path.starts_with('"'));
    let is_binary = rest.contains("/target/");
    !is_binary
        && (is_quoted(&own)
            || is_relative
            || ["checkpoints", "configs", "data", "tests"].iter().any(|folder| is_quoted(&format!("{ROOT}/{folder}/"))))
}

fn threads(logs: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(logs).expect("logs").map(|entry| entry.expect("a log").path());
    let logs = entries.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log.")));
    logs.map(|path| String::from_utf8_lossy(&std::fs::read(path).expect("a log")).into_owned()).collect()
}

fn trace(args: &[String], logs: &Path, filter: &[&str]) -> Ended {
    if logs.exists() {
        std::fs::remove_dir_all(logs).expect("no logs");
    }
    std::fs::create_dir_all(logs).expect("logs");
    let mut command = Command::new("strace");
    command.args(["-f", "-ff", "-y", "-s", "0", "-o"]).arg(logs.join("log")).args(filter);
    command.arg(env!("CARGO_BIN_EXE_seg4diff")).args(args);
    run(&mut command, logs)
}

/// Runs a command to its end.
pub fn run(command: &mut Command, logs: &Path) -> Ended {
    calm(command);
    let errors = logs.join("stderr");
    let output = || Stdio::from(std::fs::File::create(&errors).expect("a file"));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output()).spawn().expect("a command");
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        match child.try_wait().expect("a status") {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill().expect("killed");
                panic!("{command:?} hangs");
            }
            None => std::thread::sleep(Duration::from_millis(3)),
        }
    };
    let said = String::from_utf8_lossy(&std::fs::read(&errors).expect("what was said")).into_owned();
    Ended { status, said, hit: None }
}
