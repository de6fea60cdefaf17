//! Terminal output: a closed reader stops no job, and no text controls the terminal.
//!
//! The full device and the terminal that the tests make are Linux's.
#![cfg(target_os = "linux")]
mod smoke_run;

use candle_core::{DType, Device, Tensor};
use smoke_run::{Run, read};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const SETTINGS: &[&str] = &["train.steps=6", "train.batch=2", "data.resolution=64", "checkpoint.every=2"];

/// A file that is always full.
fn full() -> Stdio {
    File::options().write(true).open("/dev/full").expect("/dev/full").into()
}

/// A job's standard output or error.
type Place = fn(&mut Command) -> &mut Command;

/// Closes a descriptor of the job before it starts.
fn close(command: &mut Command, descriptor: i32) -> &mut Command {
    // SAFETY: a plain system call between fork and exec.
    unsafe {
        command.pre_exec(move || match libc::close(descriptor) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    }
}

#[test]
fn a_log_that_cannot_be_written_loses_no_step() {
    let undisturbed = Run::new(SETTINGS);
    undisturbed.finish(&[]);
    let lora = read(undisturbed.path("lora.safetensors"));
    let places: [(&str, Place); 5] = [
        ("stderr on a full disk", |job| job.stderr(full())),
        ("both on a full disk", |job| job.stdout(full()).stderr(full())),
        ("stderr closed", |job| close(job, 2)),
        ("both closed", |job| close(close(job, 1), 2)),
        ("stderr that is not for writing", |job| job.stderr(File::open("/dev/null").expect("/dev/null"))),
    ];
    for (what, place) in places {
        let run = Run::new(SETTINGS);
        let status = place(run.train(&[]).stdout(Stdio::null()).stderr(Stdio::null())).status().expect("train");
        assert_eq!(status.code(), Some(0), "{what}");
        assert!(read(run.path("lora.safetensors")) == lora, "{what}: another adapter");
        assert!(run.path("report.html").is_file(), "{what}");
    }
}

/// As in `2>&1 | head -1`, and a terminal that is closed.
#[test]
fn a_log_reader_that_goes_away_loses_no_step() {
    let undisturbed = Run::new(SETTINGS);
    undisturbed.finish(&[]);
    let lora = read(undisturbed.path("lora.safetensors"));

    let run = Run::new(SETTINGS);
    let mut job = run.train(&[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("train");
    let mut reader = job.stderr.take().expect("stderr");
    reader.read_exact(&mut [0; 20]).expect("a beginning");
    drop(reader);
    assert_eq!(job.wait().expect("status").code(), Some(0), "a pipe");
    assert!(read(run.path("lora.safetensors")) == lora, "a pipe: another adapter");

    let run = Run::new(SETTINGS);
    let (mut ours, theirs) = terminal();
    let mut command = run.train(&[]);
    let mut job = command.stdout(Stdio::null()).stderr(theirs).spawn().expect("train");
    drop(command);
    let mut said = vec![];
    while !String::from_utf8_lossy(&said).contains("step 1/6") {
        let mut part = [0; 4096];
        let length = ours.read(&mut part).expect("a bar on the terminal");
        said.extend(&part[..length]);
    }
    drop(ours);
    assert_eq!(job.wait().expect("status").code(), Some(0), "a terminal");
    assert!(read(run.path("lora.safetensors")) == lora, "a terminal: another adapter");
}

/// A terminal's two ends: the user's and the program's.
fn terminal() -> (File, File) {
    let (mut ours, mut theirs) = (0, 0);
    let none = std::ptr::null_mut();
    // SAFETY: the descriptors are written where the arguments point to, and belong to nobody else.
    unsafe {
        assert_eq!(libc::openpty(&mut ours, &mut theirs, none, none.cast(), none.cast()), 0);
        // A child that inherited the user's end would keep the terminal open.
        assert_eq!(libc::fcntl(ours, libc::F_SETFD, libc::FD_CLOEXEC), 0);
        (File::from_raw_fd(ours), File::from_raw_fd(theirs))
    }
}

fn seg4diff(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.current_dir(folder).env_remove("RUST_LOG").args(args);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// Four scenes in `FOLDER/scenes`; the arguments that evaluate the smoke run's base model on them.
fn scenes(folder: &Path) -> Vec<String> {
    let job = ["prepare", "scenes", "--out", "scenes", "--count", "4", "--size", "64"];
    assert!(seg4diff(folder, &job).output().expect("scenes").status.success());
    let base = format!("{ROOT}/checkpoints/smoke-base");
    let data = ["--images", "scenes/images", "--labels", "scenes/labels", "--classes", "scenes/classes.json"];
    let model = ["evaluate", "segmentation", "--model", &base, "--layer", "1", "--size", "64", "--device", "cpu"];
    model.iter().chain(&data).map(|word| word.to_string()).collect()
}

#[test]
fn a_result_that_cannot_be_written_is_an_error() {
    let folder = tempfile::tempdir().expect("folder");
    let measure = scenes(folder.path());
    let measure: Vec<&str> = measure.iter().map(String::as_str).collect();
    let config = format!("{ROOT}/configs/smoke.toml");
    let check = ["train", "--check", "--config", &config];
    let analyze = [&["analyze"], &measure[2..4], &measure[6..]].concat();
    for job in [measure.as_slice(), &analyze, &["--help"], &["evaluate", "fid", "--help"], &["--version"]] {
        let output = seg4diff(folder.path(), job).stdout(full()).output().expect("seg4diff");
        assert_eq!(output.status.code(), Some(1), "{job:?}: {}", said(&output));
        let error = "error: cannot write to standard output: No space left on device (os error 28)";
        assert!(said(&output).lines().any(|line| line == error), "{job:?}: {}", said(&output));
    }
    let output = seg4diff(Path::new(ROOT), &check).stdout(full()).output().expect("seg4diff");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));

    // A reader that closed the pipe has read enough.
    for job in [measure.as_slice(), &["--help"]] {
        let mut running =
            seg4diff(folder.path(), job).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("job");
        drop(running.stdout.take());
        let output = running.wait_with_output().expect("status");
        assert_eq!(output.status.code(), Some(0), "{job:?}: {}", said(&output));
        assert!(!said(&output).contains("error"), "{job:?}: {}", said(&output));
    }
}

/// Results that are also in files survive the loss of standard output.
#[test]
fn a_result_that_is_in_files_needs_no_standard_output() {
    let folder = tempfile::tempdir().expect("folder");
    let job = ["prepare", "scenes", "--out", "scenes", "--count", "2", "--size", "64"];
    let status = seg4diff(folder.path(), &job).stdout(full()).stderr(full()).status().expect("scenes");
    assert_eq!(status.code(), Some(0));
    assert!(folder.path().join("scenes/classes.json").is_file());
    let status = draw(folder.path(), "out", &["one", "two"]).stdout(full()).stderr(full()).status().expect("generate");
    assert_eq!(status.code(), Some(0));
    assert!(folder.path().join("out/000001.png").is_file());
}

fn draw(folder: &Path, out: &str, prompts: &[&str]) -> Command {
    let base = format!("{ROOT}/checkpoints/smoke-base");
    let how = ["generate", "--model", &base, "--device", "cpu", "--size", "64", "--steps", "1", "--out", out];
    let mut command = seg4diff(folder, &how);
    command.arg("--prompt").args(prompts);
    command
}

/// Fails if a text would control a terminal. Newlines are the program's own, so none may follow `text`.
fn check_printable(text: &str, what: &str) {
    let steers = |c: char| {
        (c.is_control() && c != '\n') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}')
    };
    assert!(!text.contains(steers), "{what}: {text:?}");
    assert!(!text.lines().any(|line| line.starts_with("forged")), "{what}: {text:?}");
}

const EVIL: &str = "e\u{1b}[2J\u{1b}]0;title\u{7}\u{9b}31m\u{202e}\u{7f}\r\nforged";
const HARMLESS: &str = "e\\x1b[2J\\x1b]0;title\\x07\\u{9b}31m\\u{202e}\\x7f\\x0d";

#[test]
fn names_and_prompts_do_not_steer_the_terminal() {
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name);
    let base = format!("{ROOT}/checkpoints/smoke-base");
    let tensors = BTreeMap::from([(EVIL.to_string(), Tensor::zeros(4, DType::F32, &Device::Cpu).expect("tensor"))]);
    seg4diff::model::weights::write(&path("lora.safetensors"), &tensors, &BTreeMap::new()).expect("write");
    std::fs::write(path("key.toml"), "\"e\\u001b[2J\\u001b]0;title\\u0007\\u009b31m\\u202e\\u007f\\r\\nforged\" = 1\n")
        .expect("write");
    let file = format!("{EVIL}.toml");
    let setting = format!("{EVIL}=1");
    let flag = format!("--{EVIL}");
    for (what, job) in [
        ("a file", vec!["train", "--config", &file]),
        ("a setting", vec!["train", "--config", "key.toml", "--set", &setting]),
        ("a key", vec!["train", "--config", "key.toml"]),
        ("a flag", vec!["train", &flag]),
        ("a command", vec![EVIL]),
        ("a model", vec!["generate", "--model", EVIL, "--prompt", "x", "--out", "out"]),
        ("a folder", vec!["evaluate", "fid", "--real", EVIL, "--generated", EVIL, "--inception", EVIL]),
        ("a tensor", vec!["generate", "--model", &base, "--lora", "lora.safetensors", "--prompt", "x", "--out", "out"]),
    ] {
        let output = seg4diff(folder.path(), &job).output().expect("seg4diff");
        assert!(!output.status.success(), "{what}");
        check_printable(&said(&output), what);
        assert!(said(&output).contains(HARMLESS), "{what}: {}", said(&output));
    }

    // Standard output too; files keep the text unchanged.
    let output = draw(folder.path(), EVIL, &[EVIL]).output().expect("generate");
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8(output.stdout).expect("text");
    check_printable(&text, "a prompt");
    assert!(text.matches(HARMLESS).count() == 2, "{text}");
    let captions: BTreeMap<String, String> =
        serde_json::from_slice(&read(path(EVIL).join("captions.json"))).expect("JSON");
    assert_eq!(captions["000000"], EVIL);
}

#[test]
fn classes_and_samples_do_not_steer_the_terminal() {
    let folder = tempfile::tempdir().expect("folder");
    let measure = scenes(folder.path());
    let classes = folder.path().join("scenes/classes.json");
    let names: Vec<String> = serde_json::from_slice(&read(&classes)).expect("names");
    let names: Vec<String> = names.into_iter().map(|name| format!("\u{1b}[2J\u{202e}{name}")).collect();
    std::fs::write(&classes, serde_json::to_vec(&names).expect("JSON")).expect("write");
    let measure: Vec<&str> = measure.iter().map(String::as_str).chain(["--json", "scores.json"]).collect();
    let output = seg4diff(folder.path(), &measure).output().expect("seg4diff");
    assert!(output.status.success(), "{}", said(&output));
    let table = String::from_utf8(output.stdout).expect("text");
    check_printable(&table, "a class");
    assert!(table.contains("\\x1b[2J\\u{202e}"), "{table}");
    let scores: serde_json::Value = serde_json::from_slice(&read(folder.path().join("scores.json"))).expect("JSON");
    assert!(scores["per_class"].as_object().expect("classes").keys().all(|name| name.starts_with("\u{1b}[2J\u{202e}")));

    // A sample's name in a log line, from a tar file.
    let mut archive = tar::Builder::new(File::create(folder.path().join("evil.tar")).expect("tar"));
    for extension in ["jpg", "json"] {
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        archive.append_data(&mut header, format!("{EVIL}.{extension}"), &b"evil"[..]).expect("member");
    }
    archive.into_inner().expect("tar");
    let evil = folder.path().join("evil.tar");
    let source = format!("data.source=[{:?}, \"data/smoke/sa_000000.tar\"]", evil.display());
    let run = Run::new(&[SETTINGS, &[&source, "data.max_broken=1.0", "train.steps=12"]].concat());
    let log = run.finish(&[]);
    check_printable(&log, "a sample");
    assert!(log.contains(HARMLESS), "{log}");
}
