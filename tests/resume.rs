//! A run that is killed, stopped, resumed, or run on other threads ends with the bytes of an undisturbed one.
mod model_folder;
mod outcome;
mod smoke_run;

use candle_core::{DType, Device, Tensor};
use outcome::Outcome;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use seg4diff::config::RunConfig;
use seg4diff::model::families;
use seg4diff::model::weights::files::ModelFiles;
use seg4diff::model::weights::read_all;
use seg4diff::train::parameters::Parameters;
use serde_json::Value;
use smoke_run::{Run, read, run as run_to_end, succeed};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// With four images a step, more than two epochs of the smoke data.
const STEPS: u64 = 24;
const SETTINGS: &[&str] = &[
    "train.steps=24",
    "train.batch=2",
    "train.accumulate=2",
    "checkpoint.every=3",
    "data.resolution=64",
    "data.caption_dropout=0.2",
    "data.crop=random",
    "data.flip=true",
];

static UNDISTURBED: LazyLock<Outcome> = LazyLock::new(|| {
    let run = Run::new(SETTINGS);
    run.finish(&[]);
    let outcome = Outcome::of(&run, STEPS);
    let steps: Vec<Option<u64>> = outcome.metrics.iter().map(|line| line["step"].as_u64()).collect();
    assert_eq!(steps, (1..=STEPS).map(Some).collect::<Vec<_>>());
    assert!(outcome.metrics.iter().all(|line| line["loss"].is_number() && line["dice"].as_f64() > Some(0.0)));
    outcome
});

/// A training process, killed on drop if a failed test leaves it behind.
struct Process {
    child: Child,
    metrics: std::path::PathBuf,
    metrics_before: Option<u64>,
}

impl Process {
    fn start(run: &Run, more: &[&str], threads: &str) -> Self {
        let metrics = run.path("metrics.jsonl");
        let metrics_before = identity(&metrics);
        let mut command = run.train(more);
        command.env("RAYON_NUM_THREADS", threads).stdout(Stdio::null()).stderr(Stdio::piped());
        Self { child: command.spawn().expect("train"), metrics, metrics_before }
    }

    /// Waits until this process (not an earlier one) has done `steps` steps, or has ended.
    fn wait_for_step(&mut self, steps: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.child.try_wait().expect("status").is_none() {
            assert!(Instant::now() < deadline, "no step {steps}");
            let begun = identity(&self.metrics) != self.metrics_before;
            let text = std::fs::read(&self.metrics).unwrap_or_default();
            if begun && text.iter().filter(|byte| **byte == b'\n').count() >= steps {
                return;
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    #[cfg(unix)]
    fn signal(&mut self, signal: libc::c_int) {
        if self.child.try_wait().expect("status").is_none() {
            // SAFETY: a plain system call, on a child that has not been waited for.
            assert_eq!(unsafe { libc::kill(self.child.id() as libc::pid_t, signal) }, 0);
        }
    }

    fn kill(&mut self) {
        if self.child.try_wait().expect("status").is_none() {
            self.child.kill().expect("kill");
        }
    }

    /// Waits for the end; the exit status (`None` if killed) and the messages.
    fn end(mut self) -> (ExitStatus, String) {
        let mut said = String::new();
        let stderr = self.child.stderr.take().expect("stderr");
        std::io::Read::read_to_string(&mut { stderr }, &mut said).expect("stderr");
        (self.child.wait().expect("status"), said)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A starting run replaces the file, so its identity tells which process wrote it.
fn identity(path: &Path) -> Option<u64> {
    let file = same_file::Handle::from_path(path).ok()?;
    Some(BuildHasherDefault::<DefaultHasher>::default().hash_one(file))
}

/// Whether [`Process::kill`] ended it.
fn was_killed(status: ExitStatus) -> bool {
    #[cfg(unix)]
    return std::os::unix::process::ExitStatusExt::signal(&status) == Some(libc::SIGKILL);
    #[cfg(windows)]
    return status.code() == Some(1);
}

fn newest_checkpoint(run: &Run) -> u64 {
    seg4diff::train::checkpoint::list(&run.path("")).expect("list").last().map_or(0, |(step, _)| *step)
}

/// `kill -9` during loading, training and checkpoint writing; each restart has other numbers of workers and threads.
#[test]
fn killed_at_any_moment() {
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let run = Run::new(SETTINGS);
    let mut killed = 0;
    for life in 0..8 {
        let workers = format!("data.workers={}", 1 + life % 4);
        let mut args = vec!["--set", &workers];
        if life > 0 {
            args.push("--resume");
        }
        let mut process = Process::start(&run, &args, ["2", "1", "3"][life % 3]);
        if life % 4 == 3 {
            std::thread::sleep(Duration::from_millis(random.random_range(0..150)));
        } else {
            process.wait_for_step((newest_checkpoint(&run) + random.random_range(0..5)).min(STEPS - 4) as usize);
            std::thread::sleep(Duration::from_micros(random.random_range(0..50_000)));
        }
        process.kill();
        let (status, said) = process.end();
        assert!(status.success() || was_killed(status), "{status}: {said}");
        killed += usize::from(!status.success());
    }
    assert!(killed >= 4, "only {killed} of 8 were killed before they were done");
    run.finish(&["--resume", "--set", "data.workers=5"]);
    Outcome::of(&run, STEPS).check(&UNDISTURBED, "killed and resumed");
    let left: Vec<_> =
        std::fs::read_dir(run.path("")).expect("folder").map(|e| e.expect("entry").file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with(".w")), "{left:?}");
}

#[test]
fn killed_before_the_first_checkpoint() {
    let run = Run::new(SETTINGS);
    let mut process = Process::start(&run, &["--set", "checkpoint.every=0"], "2");
    process.wait_for_step(2);
    process.kill();
    assert!(was_killed(process.end().0));
    assert!(!run.path("checkpoints").exists() && !run.path("lora.safetensors").exists());
    let said = run.finish(&["--resume"]);
    assert!(said.contains("starting from step 0"), "{said}");
    Outcome::of(&run, STEPS).check(&UNDISTURBED, "killed before the first checkpoint");
}

/// SIGINT and SIGTERM: the step is finished, a checkpoint written, the status is 0, and the message says how to resume.
#[cfg(unix)]
#[test]
fn stopped_by_a_signal() {
    for (signal, step) in [(libc::SIGINT, 1), (libc::SIGTERM, 5)] {
        let run = Run::new(SETTINGS);
        let mut process = Process::start(&run, &[], "2");
        process.wait_for_step(step);
        let (second, said) = run_to_end(&mut run.train(&["--resume"]));
        assert_eq!(second.status.code(), Some(1), "{said}");
        assert!(said.contains("another process is training into this folder"), "{said}");
        process.signal(signal);
        let (status, said) = process.end();
        assert_eq!(status.code(), Some(0), "signal {signal}: {said}");
        let stopped = newest_checkpoint(&run);
        assert!(stopped >= step as u64 && stopped < STEPS, "{stopped}");
        assert!(said.contains(&format!("stopped after step {stopped} of {STEPS}")), "{said}");
        assert!(said.contains("--resume"), "{said}");
        let metrics = read(run.path("metrics.jsonl"));
        assert_eq!(metrics.iter().filter(|byte| **byte == b'\n').count() as u64, stopped);
        assert!(!run.path("lora.safetensors").exists());
        run.finish(&["--resume"]);
        Outcome::of(&run, STEPS).check(&UNDISTURBED, "stopped and resumed");
    }
}

/// A second signal does not wait for the step.
#[cfg(unix)]
#[test]
fn stopped_at_once_by_a_second_signal() {
    let run = Run::new(&[SETTINGS, &["train.accumulate=500"]].concat());
    let mut process = Process::start(&run, &[], "1");
    process.wait_for_step(0);
    process.signal(libc::SIGINT);
    std::thread::sleep(Duration::from_millis(100));
    process.signal(libc::SIGINT);
    let (status, said) = process.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(!run.path("checkpoints").exists());
    run.finish(&["--resume", "--set", "train.accumulate=2"]);
    Outcome::of(&run, STEPS).check(&UNDISTURBED, "stopped at once");
}

/// Resuming a complete run trains nothing and writes its adapter again.
#[test]
fn a_finished_run_is_exported_again() {
    let run = Run::new(SETTINGS);
    run.finish(&[]);
    let metrics = read(run.path("metrics.jsonl"));
    std::fs::remove_file(run.path("lora.safetensors")).expect("remove");
    run.finish(&["--resume"]);
    assert_eq!(read(run.path("metrics.jsonl")), metrics);
    Outcome::of(&run, STEPS).check(&UNDISTURBED, "resumed when complete");
}

/// The files have the mode of other new files.
#[cfg(unix)]
#[test]
fn files_have_the_mode_of_ordinary_files() {
    use std::os::unix::fs::PermissionsExt;
    let run = Run::new(SETTINGS);
    run.finish(&[]);
    let ordinary = run.path("ordinary");
    std::fs::write(&ordinary, "").expect("write");
    let mode = |path: &Path| std::fs::metadata(path).expect("metadata").permissions().mode();
    for file in [
        run.path("lora.safetensors"),
        run.path("metrics.jsonl"),
        run.path("config.toml"),
        run.checkpoint(STEPS, "state.json"),
        run.checkpoint(STEPS, "adapter.safetensors"),
    ] {
        assert_eq!(mode(&file), mode(&ordinary), "{}", file.display());
    }
}

/// From an older checkpoint than the newest: newer ones are set aside, and the run ends with equal bytes.
#[test]
fn resumed_from_an_older_checkpoint() {
    let run = Run::new(SETTINGS);
    run.finish(&["--set", "checkpoint.keep=0"]);
    let from = run.checkpoint(9, "").display().to_string();
    run.finish(&["--resume", &from, "--set", "checkpoint.keep=0"]);
    Outcome::of(&run, STEPS).check(&UNDISTURBED, "resumed from an older checkpoint");
    assert!(run.path("checkpoints/step-000012.superseded").is_dir());
}

/// The numbers of threads and workers, and recomputed blocks, change no bit, at sizes where work is split.
#[test]
fn threads_workers_and_recomputing_change_nothing() {
    const SETTINGS: &[&str] =
        &["train.steps=4", "train.batch=3", "train.accumulate=2", "checkpoint.every=0", "data.shuffle_buffer=5"];
    let variants: [(&str, &[&str]); 6] = [
        ("1", &["data.workers=1", "train.gradient_checkpointing=false"]),
        ("3", &["data.workers=1", "train.gradient_checkpointing=false"]),
        ("1", &["data.workers=4", "train.gradient_checkpointing=false"]),
        ("2", &["data.workers=2", "train.gradient_checkpointing=true"]),
        ("2", &["data.workers=2", "train.gradient_checkpointing=\"auto\""]),
        ("5", &["data.workers=7", "train.gradient_checkpointing=true"]),
    ];
    let mut first = None;
    for (threads, settings) in variants {
        let run = Run::new(SETTINGS);
        let mut command = run.train(&[]);
        for setting in settings {
            command.args(["--set", setting]);
        }
        succeed(command.env("RAYON_NUM_THREADS", threads));
        let outcome = Outcome::of(&run, 4);
        first.get_or_insert_with(|| Outcome::of(&run, 4)).check(&outcome, &format!("{threads} threads, {settings:?}"));
    }
}

/// A step without a finite loss changes nothing, is reported and counted; too many in a row end the run.
#[test]
fn steps_that_are_not_finite() {
    let broken = tempfile::tempdir().expect("folder");
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints/smoke-base");
    model_folder::copy(&base, broken.path());
    let weights = broken.path().join("transformer/diffusion_pytorch_model.safetensors");
    model_folder::edit_tensors(&weights, |tensors| {
        let name = "transformer_blocks.0.attn.to_v.weight";
        let tensor = &tensors[name];
        let mut values: Vec<f32> = tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("values");
        // A finite number whose products overflow.
        values[7] = f32::MAX;
        let spoilt = Tensor::from_vec(values, tensor.shape(), tensor.device()).expect("tensor");
        tensors.insert(name.into(), spoilt);
    });
    let model = format!("model.path={}", broken.path().display());
    let steps = |run: &Run| -> Vec<Value> {
        let text = String::from_utf8(read(run.path("metrics.jsonl"))).expect("text");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };

    let settings = [SETTINGS, &["train.steps=6", "train.max_nonfinite=4", &model]].concat();
    let run_on_broken = Run::new(&settings);
    let (output, said) = run_to_end(&mut run_on_broken.train(&[]));
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
    for part in ["error: step 4", "not finite 4 times in a row", "train.max_nonfinite = 4", "step 1: ", "skipped"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert!(steps(&run_on_broken).iter().all(|line| line["loss"].is_null()));
    assert!(!run_on_broken.path("lora.safetensors").exists());

    // The three steps before the checkpoint left everything unchanged, and on a sound model the run continues.
    let state = |run: &Run, step: u64| -> Value {
        serde_json::from_slice::<Value>(&read(run.checkpoint(step, "state.json"))).expect("JSON")["state"].take()
    };
    assert_eq!(state(&run_on_broken, 3)["counters"]["nonfinite"], 3);
    assert_eq!(read(run_on_broken.checkpoint(3, "optimizer.safetensors")), b"\x08\0\0\0\0\0\0\0{}      ");
    let adapter = read_all(&run_on_broken.checkpoint(3, "adapter.safetensors")).expect("tensors");
    assert_eq!(values(&adapter), fresh_adapter(&base, &settings));
    let model = format!("model.path={}", base.display());
    let said = run_on_broken.finish(&["--resume", "--force=model", "--set", &model]);
    assert!(said.contains("3 steps without a finite loss") && said.contains("as --force says"), "{said}");
    assert_eq!(state(&run_on_broken, 6)["counters"]["nonfinite"], 3);
    assert_eq!(state(&run_on_broken, 6)["counters"]["nonfinite_in_a_row"], 0);
    assert!(steps(&run_on_broken)[3..].iter().all(|line| line["loss"].is_number()));
}

/// A run of 12 steps that goes on to 24 ends with the bytes of one of 24, where the schedule's past is the same; where it
/// is not, the message says which number is another.
#[test]
fn a_run_grows() {
    let warming = [SETTINGS, &["optim.warmup_steps=24"]].concat();
    let (whole, grown) = (Run::new(&warming), Run::new(&warming));
    whole.finish(&[]);
    grown.finish(&["--set", "train.steps=12"]);
    let said = grown.finish(&["--resume"]);
    assert!(!said.contains("--force"), "{said}");
    Outcome::of(&grown, STEPS).check(&Outcome::of(&whole, STEPS), "grown");

    let cosine = Run::new(SETTINGS);
    cosine.finish(&["--set", "train.steps=12"]);
    let (output, said) = run_to_end(&mut cosine.train(&["--resume"]));
    assert_eq!(output.status.code(), Some(2), "{said}");
    for part in ["train.steps: 12 in the checkpoint, 24 now", "the learning rate", "step 12 had ", "--force takes"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let said = cosine.finish(&["--resume", "--force"]);
    assert!(said.contains("as --force says") && said.contains("train.steps: 12 in the checkpoint"), "{said}");
}

/// Pictures of two colours with captions, in folders.
fn pictures(folder: &Path, names: std::ops::Range<u8>) {
    std::fs::create_dir_all(folder).expect("folder");
    for number in names {
        let picture = image::RgbImage::from_fn(64, 64, |x, _| image::Rgb([4 * x as u8, 9 * number, 200]));
        picture.save(folder.join(format!("{number}.png"))).expect("picture");
        std::fs::write(folder.join(format!("{number}.txt")), format!("picture number {number}")).expect("caption");
    }
}

/// Data that moved are recognised; of data that changed, what was added, removed or changed is named.
#[test]
fn data_may_move_but_not_change() {
    let folder = tempfile::tempdir().expect("folder");
    let at = |name: &str| folder.path().join(name);
    let source = |name: &str| format!("data.source=[{:?}]", at(name).display().to_string());
    let settings = [
        "data.format=folder",
        "train.batch=2",
        "checkpoint.every=2",
        "data.resolution=64",
        "loss.focal_weight=0",
        "loss.dice_weight=0",
    ];
    pictures(&at("first"), 0..10);
    let mut config =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/smoke.toml")).expect("config");
    config = config.lines().filter(|line| !line.starts_with("captions")).collect::<Vec<_>>().join("\n");
    std::fs::write(at("c.toml"), config).expect("config");
    let start = |name: &str, steps: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
        command.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("RUST_LOG").arg("--config").arg(at("c.toml"));
        let output = format!("output={}", at("run").display());
        for setting in settings.iter().copied().chain([
            output.as_str(),
            &source(name),
            &format!("train.steps={steps}"),
            "optim.warmup_steps=8",
        ]) {
            command.args(["--set", setting]);
        }
        run_to_end(command.args(more))
    };
    let lora = || {
        let lora = read(at("run/lora.safetensors"));
        std::fs::remove_dir_all(at("run")).expect("removed");
        lora
    };
    assert!(start("first", "8", &[]).0.status.success());
    let whole = lora();
    assert!(start("first", "4", &[]).0.status.success());
    std::fs::rename(at("first"), at("moved")).expect("moved");
    let (output, said) = start("moved", "8", &["--resume"]);
    assert!(output.status.success() && !said.contains("--force"), "{said}");
    assert_eq!(lora(), whole, "on data that moved");

    assert!(start("moved", "4", &[]).0.status.success());
    pictures(&at("moved"), 10..12);
    std::fs::write(at("moved/3.txt"), "another caption").expect("caption");
    for name in ["7.png", "7.txt"] {
        std::fs::remove_file(at("moved").join(name)).expect("removed");
    }
    for more in [&["--resume"][..], &["--resume", "--force"], &["--resume", "--force=settings,model"]] {
        let (output, said) = start("moved", "8", more);
        assert_eq!(output.status.code(), Some(2), "{said}");
        for part in [
            "2 pictures added since: 10, 11",
            "1 picture removed since: 7",
            "1 picture changed since: 3",
            "--force=data",
        ] {
            assert!(said.contains(part), "{part} in {said}");
        }
    }
    let (output, said) = start("moved", "8", &["--resume", "--force=data"]);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("as --force says") && said.contains("2 pictures added since: 10, 11"), "{said}");
}

fn values(tensors: &BTreeMap<String, Tensor>) -> Vec<(String, Vec<f32>)> {
    let values = |tensor: &Tensor| tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("values");
    tensors.iter().map(|(name, tensor)| (name.clone(), values(tensor))).collect()
}

/// The initial state of a run with these settings.
fn fresh_adapter(base: &Path, settings: &[&str]) -> Vec<(String, Vec<f32>)> {
    let settings: Vec<String> = settings.iter().map(|setting| setting.to_string()).collect();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/smoke.toml");
    let config = RunConfig::load(&config, &settings).expect("config");
    let files = ModelFiles::open(&base.display().to_string()).expect("model");
    let mut model =
        families::of(&files).and_then(|family| family.load(&files, None, DType::F32, &Device::Cpu)).expect("model");
    let parameters = Parameters::new(&config, &mut model, &Device::Cpu).expect("parameters");
    values(&parameters.tensors().expect("tensors"))
}

/// A learning rate that makes the weights overflow: steps without a finite loss, caused by training itself.
#[test]
fn a_learning_rate_out_of_all_reason() {
    let run_away = Run::new(&[SETTINGS, &["optim.lr=1e30", "optim.warmup_steps=0", "train.max_nonfinite=2"]].concat());
    let (output, said) = run_to_end(&mut run_away.train(&[]));
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
    assert!(said.contains("train.max_nonfinite = 2"), "{said}");
    assert!(!run_away.path("lora.safetensors").exists());
}
