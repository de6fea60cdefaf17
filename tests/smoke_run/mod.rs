//! Runs of `configs/smoke.toml`, on the built-in base model and images, through the real binary.
#![allow(dead_code)]
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// One run, in a folder of its own.
pub struct Run {
    folder: tempfile::TempDir,
    settings: Vec<String>,
}

impl Run {
    /// A run with these settings, `key=value`, that override the smoke config's.
    pub fn new(settings: &[&str]) -> Self {
        let settings = settings.iter().map(|setting| setting.to_string()).collect();
        Self { folder: tempfile::tempdir().expect("folder"), settings }
    }

    /// A path in the run's output.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("run").join(name)
    }

    /// `train` on this run; `more` are further arguments, which override the run's settings.
    pub fn train(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
        command.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("RUST_LOG");
        command.args(["--config", "configs/smoke.toml", "--set"]).arg(format!("output={}", self.path("").display()));
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        command.args(more);
        command
    }

    /// Trains to the end; returns the messages.
    pub fn finish(&self, more: &[&str]) -> String {
        let said = succeed(&mut self.train(more));
        assert!(self.path("lora.safetensors").is_file(), "{said}");
        said
    }

    /// A file of the run's checkpoint of `step`.
    pub fn checkpoint(&self, step: u64, file: &str) -> PathBuf {
        self.path(&format!("checkpoints/step-{step:06}")).join(file)
    }
}

/// Runs a command that must succeed; returns what it wrote to stderr.
pub fn succeed(command: &mut Command) -> String {
    let (output, said) = run(command);
    assert!(output.status.success(), "{:?}: {said}", output.status);
    said
}

/// Runs a command to its end; returns its stderr too.
pub fn run(command: &mut Command) -> (Output, String) {
    let output = command.output().expect("a command that starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    (output, said)
}

pub fn read(path: impl AsRef<Path>) -> Vec<u8> {
    std::fs::read(path.as_ref()).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
}
