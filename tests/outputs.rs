//! Files and folders that commands write: one program at a time, and nothing left of killed ones.
mod smoke_run;

use seg4diff::config::RunConfig;
use seg4diff::demo::{SceneOptions, Split, write_missing};
use seg4diff::model::weights::read_all;
use seg4diff::system::output_folder::{Lock, OutputFolder};
use seg4diff::system::whole_file::{Aside, check_writable, sweep, sweep_beside, write_atomically};
use seg4diff::train::checkpoint::{Checkpoint, State, list};
use seg4diff::train::run_folder::{Resume, RunFolder};
use smoke_run::run;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

fn seg4diff(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("RUST_LOG");
    command
}

/// All names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

const MODEL: [&str; 6] = ["--model", "checkpoints/smoke-base", "--device", "cpu", "--size", "64"];
const DATA_SET: [&str; 8] = [
    "--images",
    "tests/fixtures/segmentation/images",
    "--labels",
    "tests/fixtures/segmentation/labels",
    "--classes",
    "tests/fixtures/segmentation/classes.json",
    "--layer",
    "1",
];

/// Every command that writes into a folder over time, except training, scenes and caches; without the folder argument.
fn commands() -> Vec<(&'static str, Vec<&'static str>)> {
    let image = ["--image", "tests/fixtures/segmentation/images/wide.jpg", "--prompt", "a cat", "--layer", "1"];
    vec![
        ("--out", [&["generate", "--prompt", "a", "--steps", "1"], &MODEL[..]].concat()),
        ("--out", [&["probe"], &MODEL[..], &image].concat()),
        ("--predictions", [&["evaluate", "segmentation"], &MODEL[..], &DATA_SET].concat()),
        ("--predictions", [&["evaluate", "unsupervised"], &MODEL[..], &DATA_SET].concat()),
        ("--out", vec!["prepare", "labels", "--mat", "tests/fixtures/matlab"]),
        ("--out", vec!["prepare", "cache", "--config", "configs/smoke.toml"]),
    ]
}

#[test]
fn a_folder_that_another_program_writes_into_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("out");
    for (flag, mut args) in commands() {
        let held = OutputFolder::hold(&out).expect("held");
        args.extend([flag, out.to_str().expect("text")]);
        let (output, said) = run(&mut seg4diff(&args));
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.starts_with(&format!("error: {}: another pro", out.display())), "{args:?}: {said}");
        assert_eq!(names(&out), [".lock"], "{args:?}");
        drop(held);
        assert!(!out.exists(), "{args:?}");
    }
}

/// Two commands that draw different pictures into one folder: the second is refused during the first, and after it.
#[test]
fn pictures_of_two_seeds_are_never_mixed() {
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("images");
    let args = ["generate", "--prompt", "a", "b", "--steps", "1000", "--out", out.to_str().expect("text"), "--seed"];
    let mut first = seg4diff(&[&args[..], &["1"], &MODEL].concat());
    let mut first = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("generate");
    wait_for(|| out.join("generation.json").exists());
    let second = || run(&mut seg4diff(&[&args[..], &["2"], &MODEL].concat()));
    let (output, said) = second();
    assert!(said.contains("another program is writing into this folder"), "{said}");
    assert_eq!(output.status.code(), Some(1));
    first.kill().expect("killed");
    first.wait().expect("ended");
    let (output, said) = second();
    assert!(said.contains("another seed (1, now 2)") && output.status.code() == Some(1), "{said}");
    assert!(names(&out).iter().all(|name| !name.starts_with('.')), "{:?}", names(&out));
}

fn wait_for(mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !there() {
        assert!(Instant::now() < deadline, "waited for a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// One at a time, although the file is replaced.
#[test]
fn a_lock_is_held_by_one() {
    let folder = tempfile::tempdir().expect("folder");
    let (file, inside, most) = (folder.path().join("a.lock"), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let lock = Lock::wait(&file, || {}).expect("a lock");
                    most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(lock);
                }
            });
        }
    });
    assert_eq!(most.into_inner(), 1);
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn what_is_written_now_is_no_leftover() {
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name);
    for name in [".writing-a.json-Xy12Zw", ".writing-b.json-Xy12Zw", "a.json", ".hidden"] {
        std::fs::write(path(name), "half").expect("write");
    }
    std::fs::create_dir(path(".writing-a.json-folder")).expect("a folder");
    let aside = Aside::beside(&path("a.json")).expect("aside");
    let at_work = aside.path().file_name().expect("a name").to_string_lossy().into_owned();
    sweep_beside(&path("a.json")).expect("swept");
    assert_eq!(names(folder.path()), [".hidden", &at_work, ".writing-b.json-Xy12Zw", "a.json"]);
    sweep(folder.path()).expect("swept");
    assert_eq!(names(folder.path()), [".hidden", &at_work, "a.json"]);
    write_atomically(&path("c.json"), |out| {
        sweep(folder.path()).expect("swept");
        out.write_all(b"whole")
    })
    .expect("written");
    assert_eq!(std::fs::read(path("c.json")).expect("a file"), b"whole");
    drop(aside);
    assert_eq!(names(folder.path()), [".hidden", "a.json", "c.json"]);
}

/// Every command leaves something when killed while writing; running it again removes that.
#[test]
fn leftovers_of_killed_commands_are_removed() {
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("out");
    for (flag, mut args) in commands() {
        std::fs::create_dir(&out).expect("a folder");
        std::fs::write(out.join(".writing-000000.png-ab12CD"), "half").expect("write");
        std::fs::write(out.join(".lock"), "").expect("write");
        args.extend([flag, out.to_str().expect("text")]);
        let (output, said) = run(&mut seg4diff(&args));
        assert!(output.status.success(), "{args:?}: {said}");
        assert!(names(&out).iter().all(|name| !name.starts_with('.')), "{args:?}: {:?}", names(&out));
        std::fs::remove_dir_all(&out).expect("removed");
    }
    // A file's leftovers are in a folder that is not the command's.
    let json = folder.path().join("long name.json");
    for name in [".writing-long name.json-ab12CD", ".writing-other.json-ab12CD"] {
        std::fs::write(folder.path().join(name), "half").expect("write");
    }
    check_writable(&json).expect("writable");
    assert_eq!(names(folder.path()), [".writing-other.json-ab12CD"]);
}

#[test]
fn scenes_that_were_killed_leave_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("scenes");
    let args = |count| ["prepare", "scenes", "--out", out.to_str().expect("text"), "--count", count];
    let mut killed = seg4diff(&args("20000"));
    let mut killed = killed.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("prepare scenes");
    wait_for(|| names(folder.path()).iter().any(|name| name.starts_with(".writing-")));
    killed.kill().expect("killed");
    killed.wait().expect("ended");
    assert!(!out.exists() && !names(folder.path()).is_empty());
    let (output, said) = run(&mut seg4diff(&args("3")));
    assert!(output.status.success(), "{said}");
    assert_eq!(names(folder.path()), ["scenes"]);
    // The scenes are complete, as the command confirms; other options are refused.
    let (output, said) = run(&mut seg4diff(&args("3")));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && told.contains("3 scenes were there"), "{told}{said}");
    let (output, said) = run(&mut seg4diff(&args("4")));
    assert!(output.status.code() == Some(2) && said.contains("other scenes"), "{said}");
}

/// Commands that draw equal scenes at once: one draws, the others find them.
#[test]
fn scenes_are_drawn_once() {
    let folder = tempfile::tempdir().expect("folder");
    let (out, drawn) = (folder.path().join("scenes"), AtomicUsize::new(0));
    let options = SceneOptions { seed: 5, split: Split::Train, size: 64 };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let were_there = write_missing(&out, 30, options, |_| {}).expect("scenes");
                drawn.fetch_add(usize::from(!were_there), Ordering::SeqCst);
            });
        }
    });
    assert_eq!(drawn.into_inner(), 1);
    assert_eq!(names(folder.path()), ["scenes"]);
    assert_eq!(names(&out.join("images")).len(), 30);
}

/// Of many validations, the first, the last and some between keep their pictures: as files, for TensorBoard and on the
/// page. All scores are kept.
#[test]
fn pictures_of_validations_do_not_grow_without_end() {
    let folder = tempfile::tempdir().expect("folder");
    let output = folder.path().join("run");
    let mut train = seg4diff(&["train", "--config", "configs/smoke.toml", "--set"]);
    train.arg(format!("output={}", output.display()));
    for (key, value) in [("images", "images"), ("labels", "labels"), ("classes", "classes.json")] {
        train.arg("--set").arg(format!("eval.{key}=tests/fixtures/segmentation/{value}"));
    }
    let settings = "train.steps=8 train.batch=1 data.resolution=64 eval.every=1 eval.every_images=1 eval.before=false \
                    eval.segmentation_images=1 eval.keep_pictures=3";
    train.args(settings.split_whitespace().flat_map(|setting| ["--set", setting]));
    let (ended, said) = run(&mut train);
    assert!(ended.status.success(), "{said}");
    let kept: Vec<String> = [1, 5, 8].map(|step| format!("step-00000{step}-attention.png")).into();
    assert_eq!(names(&output.join("validation")), kept);
    let [events] = &names(&output.join("tensorboard"))[..] else { panic!("one file of events") };
    let events = std::fs::read(output.join("tensorboard").join(events)).expect("events");
    let count = |what: &[u8]| events.windows(what.len()).filter(|bytes| *bytes == what).count();
    assert_eq!((count(b"\x89PNG"), count(b"validation/miou")), (3, 8));
    let page = std::fs::read_to_string(output.join("report.html")).expect("a page");
    assert!([1, 5, 8].iter().all(|step| page.contains(&format!("attention of the expert at step {step}"))));
    assert_eq!(page.matches("attention of the expert at step").count(), 3);
}

fn config(keep: usize) -> RunConfig {
    let keep = format!("checkpoint.keep={keep}");
    RunConfig::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/smoke.toml"), &[keep]).expect("config")
}

fn save(output: &Path, steps: impl IntoIterator<Item = u64>, keep: usize) {
    let tensors = read_all(Path::new("checkpoints/smoke-base/vae/diffusion_pytorch_model.safetensors"));
    let tensors: BTreeMap<_, _> = tensors.expect("tensors").into_iter().take(1).collect();
    for step in steps {
        let state = State { step, ..Default::default() };
        let checkpoint = Checkpoint { state, processes: 1, adapter: tensors.clone(), optimizer: tensors.clone() };
        checkpoint.save(output, &config(keep)).expect("saved");
    }
}

fn steps(output: &Path) -> Vec<u64> {
    list(output).expect("a list").into_iter().map(|(step, _)| step).collect()
}

/// A run killed between writing a checkpoint and removing an old one, or during the removal, keeps no more checkpoints
/// than it should once it is resumed.
#[test]
fn old_checkpoints_of_a_killed_run_are_removed() {
    let folder = tempfile::tempdir().expect("folder");
    let output = folder.path().join("run");
    save(&output, 1..=5, 0);
    // Half removed: by a version that removed in place, and by this one.
    std::fs::remove_file(output.join("checkpoints/step-000001/state.json")).expect("removed");
    std::fs::create_dir(output.join("checkpoints/.writing-removed-step-000000")).expect("a folder");
    let run = RunFolder::open(&output, &Resume::Newest).expect("open");
    run.begin(&config(2), 5).expect("begun");
    assert_eq!(steps(&output), [4, 5]);
    assert_eq!(names(&output.join("checkpoints")), ["step-000004", "step-000005"]);
    drop(run);
    save(&output, [6], 2);
    assert_eq!(steps(&output), [5, 6]);
    // All are kept where the config says so.
    let run = RunFolder::open(&output, &Resume::Newest).expect("open");
    run.begin(&config(0), 6).expect("begun");
    assert_eq!(steps(&output), [5, 6]);
}
