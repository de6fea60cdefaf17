//! A disk that breaks in the middle of a run ends the job with an error that names the rank, and the run goes on afterwards as
//! if nothing had happened.
use crate::faults::{PATIENCE, SETTINGS, expected, goes_on};
use crate::job::{Ended, Job, has_mpirun};
use crate::smoke_run::Run;
use seg4diff::train::checkpoint::{newest_whole, verify};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The job has ended in time, with one error, which has these parts; the last checkpoint is whole.
fn has_ended(run: &Run, ended: &Ended, parts: &[&str], what: &str) {
    assert!(ended.took < PATIENCE, "{what}: {:?}", ended.took);
    assert_eq!((ended.status, ended.errors().len()), (Some(1), 1), "{what}: {}", ended.said);
    parts.iter().for_each(|part| assert!(ended.errors()[0].contains(part), "{what}: {part} in {}", ended.said));
    let newest = newest_whole(&run.path("")).expect("folder").expect("a checkpoint");
    verify(&newest).expect("whole");
    assert!(!run.path("lora.safetensors").exists(), "{what}");
}

/// From now on no file of the process grows beyond so many bytes: writing fails as on a full disk.
fn fill_disk(process: i32, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: the structure is there for the time of the call.
    let failed = unsafe { libc::prlimit(process, libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut()) };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
}

/// Waits until the run has written all files that its beginning alone has, and checkpoints.
fn checkpoint(run: &Run) {
    let started = Instant::now();
    let is_late = |checkpoint: PathBuf| checkpoint.file_name().is_some_and(|name| name >= "step-000003");
    while !newest_whole(&run.path("")).ok().flatten().is_some_and(is_late) {
        assert!(started.elapsed() < Duration::from_secs(120), "no checkpoint");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Rank 0 cannot write a checkpoint any more, or not even a line of metrics.
#[test]
fn full_while_training() {
    if !has_mpirun() {
        return;
    }
    let expected = expected();
    for (bytes, file) in [(50_000, "cannot write"), (1, "metrics.jsonl: cannot write")] {
        let run = Run::new(&SETTINGS);
        // The signal that goes with it would end the process.
        let job = Job::start_through("trap '' XFSZ; exec \"$@\"", 3, &run.train(&[]));
        checkpoint(&run);
        fill_disk(job.process(0).expect("a process"), bytes);
        has_ended(&run, &job.end(), &["error: rank 0 on ", file, "File too large"], file);
        goes_on(&run, &expected, file);
    }
}

/// A place that a process starts in, with data of its own.
fn place(folder: PathBuf) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::create_dir_all(folder.join("data/smoke")).expect("folder");
    ["configs", "checkpoints"].iter().for_each(|name| symlink(root.join(name), folder.join(name)).expect("link"));
    for entry in std::fs::read_dir(root.join("data/smoke")).expect("data").map(|entry| entry.expect("entry")) {
        std::fs::copy(entry.path(), folder.join("data/smoke").join(entry.file_name())).expect("copied");
    }
    folder
}

/// Rank 1 cannot read any more what the others can.
#[test]
fn a_reader_alone_is_cut_off() {
    if !has_mpirun() {
        return;
    }
    let expected = expected();
    let has_strace =
        Command::new("strace").args(["-o", "/dev/null", "true"]).status().is_ok_and(|ended| ended.success());
    if !has_strace {
        assert!(std::env::var_os("REQUIRE_STRACE").is_none(), "no strace");
        eprintln!("no strace: no disk fails");
    }
    let world = tempfile::tempdir().expect("folder");
    let places = ["shared", "alone"].map(|name| place(world.path().join(name)));
    let shards = ["sa_000000.tar", "sa_000001.tar"].map(|name| places[1].join("data/smoke").join(name));
    for broken in ["taken away", "broken"].into_iter().filter(|broken| has_strace || *broken != "broken") {
        let run = Run::new(&SETTINGS);
        let trace = match broken {
            "broken" => {
                "strace -f -qq -o /dev/null -P data/smoke/sa_000000.tar -P data/smoke/sa_000001.tar \
                 -e inject=pread64:error=EIO:when=60+"
            }
            _ => "",
        };
        let [shared, alone] = places.each_ref().map(|place| place.display().to_string());
        let shell = format!(
            "if [ $OMPI_COMM_WORLD_RANK = 1 ]; then cd {alone}; exec {trace} \"$@\"; else cd {shared}; exec \"$@\"; fi"
        );
        let job = Job::start_through(&shell, 3, &run.train(&[]));
        if broken == "taken away" {
            checkpoint(&run);
            let aside = |shard: &PathBuf| shard.with_extension("aside");
            shards.iter().for_each(|shard| std::fs::rename(shard, aside(shard)).expect("renamed"));
            let ended = job.end();
            shards.iter().for_each(|shard| std::fs::rename(aside(shard), shard).expect("renamed"));
            has_ended(&run, &ended, &["error: rank 1 "], broken);
        } else {
            has_ended(&run, &job.end(), &["error: rank 1 on ", "data/smoke/sa_00000", "Input/output error"], broken);
        }
        goes_on(&run, &expected, broken);
    }
}
