//! `strace`: traces a command's system calls, and injects faults into one of them.
use super::commands::{ROOT, calm};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Calls that faults are injected into, and their errors; the process is also killed at each of them.
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
/// Longer than any command takes.
const LIMIT: Duration = Duration::from_secs(300);

/// The calls of one name about one of the read-only files, or about all other files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Calls {
    pub name: &'static str,
    pub input: Option<String>,
}

/// A fault in the `nth` of such calls in each thread.
#[derive(Clone, Debug)]
pub struct Fault {
    pub calls: Calls,
    pub nth: usize,
    /// `None`: the process is killed instead of the call.
    pub error: Option<&'static str>,
    /// Whether the following calls fail, too.
    pub lasts: bool,
}

impl Fault {
    pub fn kind(&self) -> String {
        format!("{}{}", self.error.unwrap_or("SIGKILL"), if self.lasts { "+" } else { "" })
    }

    /// The call as shown in the table.
    pub fn call(&self) -> String {
        let Calls { name, input } = &self.calls;
        format!("{name}{}", if input.is_some() { " input" } else { "" })
    }

    /// The system's message for the error.
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
    /// The call that the fault was injected into, as shown by strace; `None` if it was not reached.
    pub hit: Option<String>,
    /// Whether a fault hit its standard error, so that it could not report.
    pub is_mute: bool,
}

impl Ended {
    pub fn is_killed(&self) -> bool {
        self.status.signal() == Some(9)
    }
}

/// Whether strace is installed and may trace.
pub fn is_there() -> bool {
    let traced = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    traced.is_ok_and(|status| status.success())
}

/// Runs a command and lists its calls about files of the test or of the program, except system libraries, by their
/// numbers within their threads. `work` is the folder that it writes into.
pub fn calls(args: &[String], logs: &Path, work: &Path) -> (Ended, BTreeMap<Calls, BTreeSet<usize>>) {
    let names: Vec<&str> = CALLS.iter().map(|(name, _)| *name).collect();
    let ended = trace(args, logs, &["-e", &format!("trace={}", names.join(","))]);
    let mut found: BTreeMap<Calls, BTreeSet<usize>> = BTreeMap::new();
    for thread in threads(logs) {
        let mut counts = BTreeMap::new();
        for line in thread.lines() {
            let Some((name, rest)) = line.split_once('(') else { continue };
            let Some((name, _)) = CALLS.iter().find(|(known, _)| *known == name) else { continue };
            let mut number = |input: Option<&str>| {
                let calls = Calls { name, input: input.map(str::to_string) };
                let count = counts.entry(calls.clone()).or_insert(0);
                *count += 1;
                (calls, *count)
            };
            let others = number(None);
            let path = path_of(rest);
            let folder = logs.parent().expect("a folder");
            if Path::new(path).starts_with(work) {
                found.entry(others.0).or_default().insert(others.1);
            } else if is_input(path, folder) && !Path::new(path).starts_with(logs) {
                let (calls, number) = number(Some(path));
                found.entry(calls).or_default().insert(number);
            }
        }
    }
    (ended, found)
}

/// Runs a command with an injected fault.
pub fn disturbed(args: &[String], logs: &Path, fault: &Fault) -> Ended {
    let Fault { calls: Calls { name, input }, nth, error, lasts } = fault;
    let on = if *lasts { "+" } else { "" };
    let what = error.map_or("signal=SIGKILL".to_string(), |error| format!("error={error}"));
    let (traced, inject) = (format!("trace={name}"), format!("inject={name}:{what}:when={nth}{on}"));
    let mut filter = vec!["-e", &traced, "-e", &inject];
    if let Some(path) = input {
        // Only calls about this file are counted.
        filter.extend(["-P", path]);
    }
    let mut ended = trace(args, logs, &filter);
    let threads = threads(logs);
    let mut injected = threads.iter().flat_map(|thread| thread.lines()).filter(|line| line.contains("(INJECTED)"));
    ended.is_mute = injected.clone().any(|line| line.contains(&format!("<{}>", logs.join("stderr").display())));
    ended.hit = match ended.is_killed() {
        true => Some(input.clone().unwrap_or_default()),
        false => injected.next().map(str::to_string),
    };
    ended
}

/// The path that a call is about: a quoted argument, or else its descriptor's path.
fn path_of(rest: &str) -> &str {
    let between = |open: &str, close: char| rest.split_once(open).and_then(|(_, rest)| rest.split(close).next());
    // Buffers are cut to nothing, so that quotes hold paths alone.
    let quoted = between("\"", '"').filter(|path| !path.is_empty());
    quoted.or_else(|| between("<", '>')).unwrap_or_default()
}

/// Whether a file was made by the test, or is the program's own; relative paths are from the program's root.
fn is_input(path: &str, folder: &Path) -> bool {
    let path = Path::new(ROOT).join(path);
    path.starts_with(folder)
        || ["checkpoints", "configs", "data", "tests"].iter().any(|of| path.starts_with(Path::new(ROOT).join(of)))
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
    Ended { status, said, hit: None, is_mute: false }
}
