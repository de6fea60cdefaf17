//! Folders for a case to spoil, and the checks of every case.
use super::fake_model::fake_model;
use super::model_folder;
use candle_core::{Device, Tensor};
use seg4diff::config::RunConfig;
use seg4diff::train::checkpoint::{Checkpoint, State};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A folder with a config `c.toml` that passes all checks.
pub struct World {
    folder: tempfile::TempDir,
    /// Files that a command which fails late may leave behind.
    may_leave: &'static [&'static str],
}

impl World {
    /// With a fake model that passes the checks before loading.
    pub fn small() -> Self {
        let world = Self { folder: tempfile::tempdir().expect("folder"), may_leave: &[] };
        fake_model(&world.path("model"));
        world.write("a_0.tar", "");
        world.write(
            "c.toml",
            "output = \"run\"\n[model]\npath = \"model\"\nexpert_layer = 2\n[data]\nsource = [\"a_*.tar\"]\n",
        );
        world
    }

    /// With the model and data of the smoke run: unspoilt, it works.
    pub fn whole() -> Self {
        let may_leave = &["run", "run/config.toml", "run/data.json", "run/metrics.jsonl"];
        let world = Self { folder: tempfile::tempdir().expect("folder"), may_leave };
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        model_folder::copy(&root.join("checkpoints/smoke-base"), &world.path("model"));
        model_folder::copy(&root.join("data/smoke"), &world.path("data"));
        world.write(
            "c.toml",
            "output = \"run\"\n[model]\npath = \"model\"\nexpert_layer = 1\n[train]\nsteps = 2\nbatch = 2\n\
             accumulate = 1\n[data]\nresolution = 64\nsource = [\"data/sa_000000.tar\"]\n\
             captions = \"data/captions.json\"\n",
        );
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        std::fs::write(path, content).expect("write");
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).expect("remove");
    }

    /// Replaces a text in a file.
    pub fn replace(&self, file: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path(file)).expect("read");
        assert!(text.contains(from), "{from} in {file}");
        self.write(file, text.replace(from, to));
    }

    /// Rewrites a safetensors file.
    pub fn edit_tensors(&self, file: &str, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
        model_folder::edit_tensors(&self.path(file), change);
    }

    /// Appends to the config.
    pub fn add(&self, text: &str) {
        let config = std::fs::read_to_string(self.path("c.toml")).expect("read");
        self.write("c.toml", config + text);
    }

    /// A checkpoint of a run with this config, of a model with this fingerprint.
    pub fn checkpoint(&self, step: u64, model: &str) {
        let config = RunConfig::load(&self.path("c.toml"), &[]).expect("config");
        let tensors = BTreeMap::from([(
            "a".to_string(),
            Tensor::zeros(4, candle_core::DType::F32, &Device::Cpu).expect("tensor"),
        )]);
        let state = State { step, model: model.into(), ..Default::default() };
        let checkpoint = Checkpoint { state, processes: 1, adapter: tensors.clone(), optimizer: tensors };
        checkpoint.save(&self.path("run"), &config).expect("save");
    }

    /// `seg4diff` in this folder; arguments `env:KEY=VALUE` go into the environment.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
        command.current_dir(&self.folder).env_remove("RUST_LOG").env("RAYON_NUM_THREADS", "2");
        for arg in args {
            match arg.strip_prefix("env:").and_then(|pair| pair.split_once('=')) {
                Some((key, value)) => command.env(key, value),
                None => command.arg(arg),
            };
        }
        command
    }

    /// Every file and its content, except the lock; `None` for folders.
    fn snapshot(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        fn walk(folder: &Path, found: &mut BTreeMap<PathBuf, Option<Vec<u8>>>) {
            for entry in std::fs::read_dir(folder).expect("folder") {
                let path = entry.expect("entry").path();
                if path.is_dir() {
                    walk(&path, found);
                    found.insert(path, None);
                } else if path.file_name().is_some_and(|name| name != ".lock") {
                    let content = std::fs::read(&path).expect("read");
                    found.insert(path, Some(content));
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(self.folder.path(), &mut found);
        found
    }
}

/// How to spoil the world, the arguments of `seg4diff`, the exit status, and the required parts of the error.
pub type Case = (&'static str, fn(&World), &'static [&'static str], i32, &'static [&'static str]);

pub fn nothing(_: &World) {}

/// Truncates a file to its first half.
pub fn cut(world: &World, file: &str) {
    let content = std::fs::read(world.path(file)).expect("read");
    world.write(file, &content[..content.len() / 2]);
}

/// Runs every case in a world of its own, and reports all failures.
pub fn try_all(world: fn() -> World, cases: &[Case]) {
    let complaints: Vec<String> = cases.iter().filter_map(|case| try_one(world(), case).err()).collect();
    assert!(complaints.is_empty(), "{} of {} cases:\n{}", complaints.len(), cases.len(), complaints.join("\n\n"));
}

/// A text with Unix's separator in paths and Unix's reasons, which the cases expect.
fn in_unix_words(text: &str) -> String {
    const REASONS: [(&str, &str); 4] = [
        ("The system cannot find the file specified.", "No such file or directory"),
        ("The system cannot find the path specified.", "No such file or directory"),
        ("The directory name is invalid.", "Not a directory"),
        ("Access is denied.", "Is a directory"),
    ];
    if cfg!(not(windows)) {
        return text.into();
    }
    REASONS.iter().fold(text.replace('\\', "/"), |text, (windows, unix)| text.replace(windows, unix))
}

fn try_one(world: World, (name, spoil, args, status, expected): &Case) -> Result<(), String> {
    spoil(&world);
    let before = world.snapshot();
    let started = Instant::now();
    let output = world.command(args).output().expect("seg4diff");
    let took = started.elapsed();
    let stderr = in_unix_words(&String::from_utf8_lossy(&output.stderr));
    let check = |holds: bool, what: &str| if holds { Ok(()) } else { Err(format!("{name}: {what}\n{stderr}")) };
    check(output.status.code() == Some(*status), &format!("{}, expected {status}", output.status))?;
    check(!stderr.contains("panicked"), "panicked")?;
    let errors = stderr.lines().filter(|line| line.starts_with("error: ")).count();
    check(errors == 1 || name.contains("no command"), "not one error")?;
    check(!stderr.contains("ERROR"), "an error besides the error")?;
    for part in *expected {
        check(stderr.contains(part), &format!("{part:?} is not said"))?;
    }
    check(output.stdout.is_empty(), "something on stdout")?;
    check(took < Duration::from_secs(20), &format!("took {took:?}"))?;
    let after = world.snapshot();
    for (path, content) in &before {
        check(after.get(path) == Some(content), &format!("{} was changed", path.display()))?;
    }
    for path in after.keys().filter(|path| !before.contains_key(*path)) {
        // The event file has the time in its name.
        let is_log = !world.may_leave.is_empty() && path.starts_with(world.path("run/tensorboard"));
        let known = is_log || world.may_leave.iter().any(|name| world.path(name) == *path);
        check(known, &format!("{} was left behind", path.display()))?;
    }
    Ok(())
}
