//! I/O errors while data is read, injected by strace into the real binary: transient ones change nothing; persistent
//! ones end the run, and no sample is counted as broken.
mod folder_copy;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Four steps of the smoke run on one shard.
struct World(tempfile::TempDir);

impl World {
    fn new() -> Self {
        let world = Self(tempfile::tempdir().expect("folder"));
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        folder_copy::copy(&root.join("checkpoints/smoke-base"), &world.path("model"));
        folder_copy::copy(&root.join("data/smoke"), &world.path("data"));
        let config = "device = \"cpu\"\n[model]\npath = \"model\"\nexpert_layer = 1\n[train]\nsteps = 4\nbatch = 2\n\
                      accumulate = 1\n[data]\nresolution = 64\nsource = [\"data/sa_000000.tar\"]\n\
                      captions = \"data/captions.json\"\nworkers = 2\n";
        std::fs::write(world.path("c.toml"), config).expect("write");
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Trains into `output` while `inject` is applied to the system calls on `file`.
    fn train(&self, output: &str, file: &str, inject: &[&str]) -> Output {
        let mut command = match inject {
            [] => Command::new(env!("CARGO_BIN_EXE_train")),
            _ => {
                let mut strace = Command::new("strace");
                // By the opened name, and by the path of its descriptor.
                strace.args(["-f", "-qq", "-o", "/dev/null", "-P", file, "-P"]).arg(self.path(file));
                for fault in inject {
                    strace.args(["-e", &format!("inject={fault}")]);
                }
                strace.arg(env!("CARGO_BIN_EXE_train"));
                strace
            }
        };
        let output = format!("output=\"{output}\"");
        command.current_dir(&self.0).env_remove("RUST_LOG").args(["--config", "c.toml", "--set", &output]);
        command.output().expect("train")
    }
}

/// Whether strace is installed and may trace.
fn can_inject() -> bool {
    let traced = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    traced.is_ok_and(|output| output.status.success())
}

#[test]
fn errors_that_pass_change_nothing_and_those_that_stay_end_the_run() {
    if !can_inject() {
        println!("skipped: strace is not there, or may not trace");
        return;
    }
    let world = World::new();
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let sound = world.train("sound", "", &[]);
    assert!(sound.status.success(), "{}", said(&sound));
    let adapter = std::fs::read(world.path("sound/lora.safetensors")).expect("adapter");
    let (shard, captions) = ("data/sa_000000.tar", "data/captions.json");
    let passing: [(&str, &[&str]); 6] = [
        (shard, &["pread64:error=EIO:when=3"]),
        (shard, &["pread64:error=EIO:when=9+13"]),
        (shard, &["pread64:error=ESTALE:when=80+17"]),
        (shard, &["openat:error=EMFILE:when=2+5"]),
        (shard, &["openat:error=ENFILE:when=1", "pread64:error=ENOMEM:when=20"]),
        (captions, &["read:error=EIO:when=1"]),
    ];
    for (number, (file, inject)) in passing.into_iter().enumerate() {
        let output = world.train(&format!("passing-{number}"), file, inject);
        assert!(output.status.success(), "{inject:?}: {}", said(&output));
        let found = std::fs::read(world.path(&format!("passing-{number}/lora.safetensors"))).expect("adapter");
        assert!(found == adapter, "{inject:?}: another adapter");
        assert!(!said(&output).contains("skipped"), "{inject:?}: {}", said(&output));
    }
    let staying: [(&str, &[&str], &str); 4] = [
        (shard, &["pread64:error=EIO:when=3+"], "Input/output error"),
        (shard, &["pread64:error=EIO:when=10+"], "Input/output error"),
        (shard, &["openat:error=EMFILE:when=4+"], "Too many open files"),
        (captions, &["read:error=EIO:when=1+"], "Input/output error"),
    ];
    for (number, (file, inject, expected)) in staying.into_iter().enumerate() {
        let output = world.train(&format!("staying-{number}"), file, inject);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{inject:?}: {text}");
        assert!(text.contains(expected) && text.contains(file) && !text.contains("are broken"), "{inject:?}: {text}");
        assert!(!world.path(&format!("staying-{number}/lora.safetensors")).exists(), "{inject:?}: an adapter");
    }
}
