//! A full disk.
use super::world::World;
use seg4diff::train::checkpoint::newest_whole;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Limits the size of the command's files to `bytes`: writing fails as on a full disk, with another error number.
fn limit_files(command: &mut Command, bytes: u64) -> &mut Command {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    let set = move || {
        // SAFETY: two plain system calls between fork and exec. The signal would end the process; ignored, the write
        // itself fails.
        let failed = unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            libc::setrlimit(libc::RLIMIT_FSIZE, &limit)
        };
        if failed == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: `set` allocates nothing and takes no locks.
    unsafe { command.pre_exec(set) }
}

#[test]
fn a_checkpoint_that_does_not_fit_leaves_the_one_before() {
    let world = World::whole();
    world.replace("c.toml", "steps = 2", "steps = 6");
    world.add("[checkpoint]\nevery = 2\n");
    let train = |more: &[&str]| world.command(&[&["train", "--config", "c.toml"], more].concat());
    assert!(train(&[]).output().expect("seg4diff").status.success());
    let undisturbed = std::fs::read(world.path("run/lora.safetensors")).expect("read");

    let first = world.path("run/checkpoints/step-000002");
    let before = std::fs::read(first.join("adapter.safetensors")).expect("read");
    let resume = &["--resume", "run/checkpoints/step-000002"];
    let output = limit_files(&mut train(resume), 50_000).output().expect("seg4diff");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
    for part in ["adapter.safetensors: cannot write", "File too large"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(newest_whole(&world.path("run")).expect("checkpoint"), Some(first.clone()));
    assert!(std::fs::read(first.join("adapter.safetensors")).expect("read") == before);
    let names = |folder: &str| -> Vec<String> {
        let entries = std::fs::read_dir(world.path(folder)).expect("folder");
        entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect()
    };
    let left: Vec<String> = [names("run"), names("run/checkpoints")].concat();
    assert!(left.iter().all(|name| !name.starts_with(".writing")), "{left:?}");

    let output = train(&["--resume"]).output().expect("seg4diff");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(std::fs::read(world.path("run/lora.safetensors")).expect("read") == undisturbed);
}

#[test]
fn an_export_or_picture_that_does_not_fit_leaves_nothing() {
    let world = World::whole();
    assert!(world.command(&["train", "--config", "c.toml"]).output().expect("seg4diff").status.success());
    world.write("l.safetensors", "the old adapter");
    let checkpoint = "run/checkpoints/step-000002";
    for (args, file, old) in [
        (
            &["generate", "--model", "model", "--prompt", "a", "--out", "out", "--size", "64", "--steps", "1"][..],
            "out/000000.png",
            None,
        ),
        (
            &["export", "--checkpoint", checkpoint, "--format", "comfyui", "--out", "l.safetensors"],
            "l.safetensors",
            Some("the old adapter"),
        ),
    ] {
        let output = limit_files(&mut world.command(args), 2_000).output().expect("seg4diff");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.matches("error: ").count(), 1, "{said}");
        assert!(said.contains("cannot write") && said.contains("File too large"), "{said}");
        assert_eq!(std::fs::read(world.path(file)).ok().as_deref(), old.map(str::as_bytes));
    }
    let entries = std::fs::read_dir(world.path("")).expect("folder");
    let hidden =
        entries.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with('.')));
    assert_eq!(hidden.count(), 0);
}

#[test]
fn a_cache_that_does_not_fit_keeps_what_did() {
    let world = World::whole();
    let prepare = |folder: &str| {
        let settings = ["--set", "data.resolution=256", "--shard-size", "1", "--out", folder];
        world.command(&[&["prepare", "cache", "--config", "c.toml"], &settings[..]].concat())
    };
    let files = |folder: &str| -> std::collections::BTreeMap<String, Vec<u8>> {
        let entries = std::fs::read_dir(world.path(folder)).expect("folder").map(|entry| entry.expect("entry").path());
        let name = |path: &std::path::Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        entries.map(|path| (name(&path), std::fs::read(path).expect("read"))).collect()
    };
    assert!(prepare("undisturbed").output().expect("seg4diff").status.success());
    // Enough for the text, but not for a shard of latents.
    let output = limit_files(&mut prepare("cache"), 900_000).output().expect("seg4diff");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
    for part in ["latents-000000.safetensors: cannot write", "File too large"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert_eq!(files("cache").into_keys().collect::<Vec<_>>(), ["text-000000.safetensors"]);
    assert!(prepare("cache").output().expect("seg4diff").status.success());
    assert!(files("cache") == files("undisturbed"));
}
