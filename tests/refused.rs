//! Memory, threads and files that the system refuses: one clear error with the system's reason.
//!
//! The limits, modes and reasons are Linux's.
#![cfg(target_os = "linux")]
mod smoke_run;

use smoke_run::{Run, run as run_to_end};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// As `ulimit -v`.
fn limit_memory(command: &mut Command, megabytes: u64) -> &mut Command {
    let limit = libc::rlimit { rlim_cur: megabytes << 20, rlim_max: megabytes << 20 };
    let set = move || {
        // SAFETY: a plain system call between fork and exec.
        if unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) } == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: `set` allocates nothing and takes no locks.
    unsafe { command.pre_exec(set) }
}

fn seg4diff(args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.current_dir(ROOT).env_remove("RUST_LOG").args(args.split(' ').filter(|word| !word.is_empty()));
    command
}

#[test]
fn too_little_memory_is_an_error_and_no_abort() {
    let folder = tempfile::tempdir().expect("folder");
    let data = folder.path().join("data").display().to_string();
    smoke_run::succeed(&mut seg4diff(&format!("prepare scenes --count 4 --size 64 --out {data}")));
    let mut failed = 0;
    // With less the system cannot map the program, and ends it by SIGSEGV before it starts.
    for megabytes in [66, 75, 90, 105, 140, 180, 220, 260] {
        let out = folder.path().join(format!("out-{megabytes}")).display().to_string();
        let model = "--model checkpoints/smoke-base --device cpu --size 64";
        let labels = format!("--images {data}/images --labels {data}/labels --classes {data}/classes.json");
        let run = Run::new(&["train.steps=2", "train.batch=2", "data.resolution=64"]);
        for mut command in [
            run.train(&[]),
            seg4diff(&format!("prepare scenes --count 4 --size 64 --out {out}")),
            seg4diff(&format!("generate {model} --steps 1 --prompt x --out {out}-drawn")),
            seg4diff(&format!("evaluate segmentation {model} --layer 1 {labels}")),
            seg4diff("--help"),
        ] {
            let (output, said) = run_to_end(limit_memory(&mut command, megabytes));
            let what = format!("{megabytes} MB: {command:?}: {said}");
            match output.status.code() {
                Some(0) => {}
                // The system has no room for the program itself.
                Some(127) if said.contains("error while loading shared libraries") => {}
                Some(1) => {
                    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
                    assert_eq!(errors.len(), 1, "{what}");
                    let reason = ["out of memory: the system refuses", "cannot start ", "not enough memory"];
                    assert!(reason.iter().any(|reason| errors[0].contains(reason)), "{what}");
                    failed += 1;
                }
                _ => panic!("{}: {what}", output.status),
            }
        }
    }
    assert!(failed > 0, "there was memory enough: this shows nothing");
}

/// A memory limit that the run is known to exceed is reported before training.
#[test]
fn a_limit_of_memory_counts_against_the_estimate() {
    let run = Run::new(&["train.steps=2", "train.batch=4096", "data.resolution=256"]);
    let (output, said) = run_to_end(limit_memory(&mut run.train(&[]), 1000));
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("not enough memory: about") && said.contains("GB are free; lower train.batch"), "{said}");
}

/// Paths that fail for another reason than that nothing exists there.
#[test]
fn what_cannot_be_looked_at_gives_the_systems_reason() {
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("file"), "text").expect("write");
    symlink("circle", path("circle")).expect("link");
    let long = path(&"x".repeat(300));
    let (through, circle) = (path("file/inner"), path("circle"));
    let nowhere = [
        (through.as_str(), "Not a directory (os error 20)"),
        (&circle, "Too many levels of symbolic links (os error 40)"),
        (&long, "File name too long (os error 36)"),
    ];
    for (place, reason) in nowhere {
        let model = "--model checkpoints/smoke-base --device cpu --size 64";
        let config = "train --config configs/smoke.toml --check --set";
        let pattern = format!("{config} data.source=[\"{place}/*.tar\"]");
        let set = |key: &str| format!("{config} {key}={place}");
        let eval = "--set eval.classes=Cargo.toml --set eval.images=";
        for job in [
            format!("train --config {place}"),
            set("model.path"),
            set("data.captions"),
            set("data.cache"),
            format!("{config} data.source=[\"{place}\"]"),
            pattern,
            format!("{config} eval.labels={place} {eval}{ROOT}"),
            format!("train --config configs/smoke.toml --resume {place}"),
            format!("generate --model {place} --prompt x --out {}", path("out")),
            format!("generate {model} --prompt x --lora {place} --out {}", path("out")),
            format!("generate {model} --prompt x --out {place}"),
            format!("generate {model} --prompt x --latents {place} --out {}", path("out")),
            format!("probe {model} --image {place} --prompt x --layer 1 --out {}", path("out")),
            format!("export --checkpoint {place} --format peft --out {}", path("out")),
            format!("analyze {model} --images {place} --labels {place} --classes {place}"),
            format!("evaluate fid --real {place} --generated {place} --inception {place}"),
            format!("evaluate clip-score --clip {place} --images {place} --captions {place}"),
            format!("evaluate segmentation {model} --layer 1 --images {ROOT}/tests --labels {place} --classes {place}"),
            format!("evaluate segmentation {model} --layer 1 --images x --labels x --classes x --json {place}"),
            format!("prepare labels --mat {place} --out {}", path("out")),
            format!("prepare scenes --count 1 --size 64 --out {place}"),
        ] {
            // If arguments are checked in another order, the first bad one is named.
            let (output, said) = run_to_end(&mut seg4diff(&job));
            assert!(matches!(output.status.code(), Some(1 | 2)), "{job}: {}: {said}", output.status);
            let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
            assert_eq!(errors.len(), 1, "{job}: {said}");
            let first_missing = job.contains("--images x");
            assert!(said.contains(reason) || first_missing, "{job}: {reason} in {said}");
            assert!(!said.contains("no such") && !said.contains("is missing") || first_missing, "{job}: {said}");
        }
    }
}

/// Permission bits apply to everyone except root; as root, the program is run as nobody.
#[test]
fn what_may_not_be_read_gives_the_systems_reason() {
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name);
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("permissions");
    };
    mode(folder.path(), 0o755);
    std::fs::create_dir_all(path("closed/model/transformer")).expect("folder");
    std::fs::write(path("closed/model/model_index.json"), "{}").expect("write");
    std::fs::write(path("closed/a.tar"), "").expect("write");
    std::fs::write(
        path("c.toml"),
        "output = \"run\"\n[model]\npath = \"closed/model\"\n[data]\nsource = [\"closed/*.tar\"]\n",
    )
    .expect("write");
    mode(&path("c.toml"), 0o644);
    std::fs::create_dir(path("out")).expect("folder");
    mode(&path("out"), 0o777);
    let program = path("seg4diff");
    std::fs::copy(env!("CARGO_BIN_EXE_seg4diff"), &program).expect("copy");
    mode(&program, 0o755);
    mode(&path("closed"), 0o000);
    // SAFETY: the call only queries.
    let is_root = unsafe { libc::geteuid() } == 0;
    let job = |args: &str| {
        let mut command = Command::new(&program);
        command.current_dir(&folder).env_remove("RUST_LOG").args(args.split(' '));
        if is_root {
            command.uid(65534).gid(65534);
        }
        command
    };
    if job("--version").status().map_or(true, |status| !status.success()) {
        eprintln!("skipped: the program cannot be run as nobody");
        return;
    }
    for (args, place) in [
        ("train --config c.toml --check", "model.path: closed/model"),
        ("train --config c.toml --check", "data.source: closed"),
        ("generate --model closed/model --prompt x --out out", "closed/model"),
        ("evaluate fid --real closed --generated closed --features closed/model", "closed"),
        ("prepare labels --mat closed --out out", "closed"),
    ] {
        let (output, said) = run_to_end(&mut job(args));
        assert!(matches!(output.status.code(), Some(1 | 2)), "{args}: {said}");
        let named = said.lines().any(|line| line.contains(place) && line.contains("Permission denied (os error 13)"));
        assert!(named, "{args}: {place} in {said}");
    }
    mode(&path("closed"), 0o755);
}
