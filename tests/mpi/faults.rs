//! A process that is killed, stopped, or fails ends the job, which then goes on as if nothing had happened.
use crate::job::{Job, has_mpirun};
use crate::outcome::Outcome;
use crate::smoke_run::{Run, succeed};
use std::time::{Duration, Instant};

/// Longest time to the end of the job.
pub const PATIENCE: Duration = Duration::from_secs(30);

const STEPS: u64 = 40;
pub const SETTINGS: [&str; 6] = [
    "train.steps=40",
    "train.batch=1",
    "train.accumulate=2",
    "data.resolution=64",
    "checkpoint.every=1",
    "checkpoint.keep=2",
];

fn send(process: i32, signal: i32) {
    // SAFETY: the call has no effect but on the process.
    unsafe { libc::kill(process, signal) };
}

/// Waits until the run has a checkpoint.
fn checkpoint(run: &Run) {
    let started = Instant::now();
    while std::fs::read_dir(run.path("checkpoints")).map_or(0, |found| found.count()) == 0 {
        assert!(started.elapsed() < Duration::from_secs(120), "no checkpoint");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn expected() -> Outcome {
    let run = Run::new(&SETTINGS);
    run.finish(&["--set", "train.accumulate=6"]);
    Outcome::of(&run, STEPS)
}

/// The job goes on with another number of processes, to the bytes of one that ran through.
pub fn goes_on(run: &Run, expected: &Outcome, what: &str) {
    let command = run.train(&["--resume", "--set", "train.accumulate=3"]);
    Job::start(2, &command).end().succeeded();
    Outcome::of(run, STEPS).check(expected, what);
}

#[test]
fn killed_or_stopped() {
    if !has_mpirun() {
        return;
    }
    let expected = expected();
    for (signal, rank, says) in [
        (libc::SIGKILL, 0, "rank 0"),
        (libc::SIGKILL, 2, "rank 2"),
        (libc::SIGSTOP, 0, "error: rank 0 on"),
        (libc::SIGSTOP, 1, "error: rank 1 on"),
    ] {
        let run = Run::new(&SETTINGS);
        let job = Job::start(3, &run.train(&[]));
        checkpoint(&run);
        send(job.process(rank).expect("a process"), signal);
        let ended = job.end();
        let what = format!("signal {signal} to rank {rank}");
        assert!(ended.took < PATIENCE, "{what}: {:?}", ended.took);
        assert_ne!(ended.status, Some(0), "{what}: {}", ended.said);
        assert!(ended.said.contains(says), "{what}: {}", ended.said);
        goes_on(&run, &expected, &what);
    }
}

/// A process that was stopped while all start: before its program runs, in MPI's start, while they meet, or soon after.
#[test]
fn stopped_at_the_start() {
    if !has_mpirun() {
        return;
    }
    let stop = |milliseconds: u64, rank: usize| {
        let run = Run::new(&["train.steps=400", "data.resolution=64"]);
        let job = Job::start(3, &run.train(&[]));
        std::thread::sleep(Duration::from_millis(milliseconds));
        let started = Instant::now();
        let process = loop {
            match job.process(rank) {
                Some(process) => break process,
                None => assert!(started.elapsed() < PATIENCE, "no process"),
            }
        };
        send(process, libc::SIGSTOP);
        let ended = job.end();
        let what = format!("rank {rank} after {milliseconds} ms");
        assert!(ended.took < PATIENCE, "{what}: {:?}", ended.took);
        assert_ne!(ended.status, Some(0), "{what}: {}", ended.said);
        let is_named = |error: &&str| error.contains(&format!("rank {rank} on "));
        assert!(ended.errors().iter().any(is_named), "{what}: {}", ended.said);
    };
    // They mostly wait.
    std::thread::scope(|scope| {
        for (milliseconds, rank) in [(50, 1), (100, 0), (200, 2), (350, 0), (500, 1), (1000, 0), (1500, 2)] {
            scope.spawn(move || stop(milliseconds, rank));
        }
    });
}

/// Every process may be the one that is asked to stop; all do, after the step, and say how to go on.
#[test]
fn asked_to_stop() {
    if !has_mpirun() {
        return;
    }
    let expected = expected();
    let run = Run::new(&SETTINGS);
    let job = Job::start(3, &run.train(&[]));
    checkpoint(&run);
    send(job.process(1).expect("a process"), libc::SIGTERM);
    let said = job.end().succeeded();
    assert!(said.contains("stopped after step"), "{said}");
    goes_on(&run, &expected, "one was asked to stop");
    let run = Run::new(&SETTINGS);
    let job = Job::start(3, &run.train(&[]));
    checkpoint(&run);
    send(job.launcher(), libc::SIGUSR1);
    let said = job.end().succeeded();
    assert!(said.contains("stopped after step"), "{said}");
    goes_on(&run, &expected, "mpirun was asked to stop");
}

/// Rank 2 may have so little memory that it cannot go on.
#[test]
fn out_of_memory() {
    if !has_mpirun() {
        return;
    }
    let run = Run::new(&SETTINGS);
    let limit = "if [ $OMPI_COMM_WORLD_RANK = 2 ]; then ulimit -v 700000; fi; exec \"$@\"";
    let resolution = ["--set", "data.resolution=256", "--set", "train.batch=64", "--set", "train.steps=2"];
    let ended = Job::start_through(limit, 3, &run.train(&resolution)).end();
    assert_ne!(ended.status, Some(0), "{}", ended.said);
    assert!(ended.said.contains("memory") && ended.said.contains("rank 2"), "{}", ended.said);
    assert!(!run.path("lora.safetensors").exists());
}

/// `KILLS=100 cargo test --release --features mpi --test mpi kills -- --ignored --nocapture`: processes of random ranks are
/// killed or stopped at random moments until the run is done; it leaves the bytes of one that nobody disturbed.
#[test]
#[ignore = "takes minutes"]
fn kills() {
    if !has_mpirun() {
        return;
    }
    let expected = expected();
    let wanted: u64 = std::env::var("KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(100);
    let (mut killed, mut finished, mut slowest) = (0, 0, Duration::ZERO);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    while killed < wanted {
        let run = Run::new(&SETTINGS);
        let mut is_done = false;
        while !is_done {
            let size = if killed >= wanted { 1 } else { [1, 2, 3][draw(3) as usize] };
            let accumulate = format!("train.accumulate={}", 6 / size);
            let mut command = run.train(&["--set", &accumulate]);
            if run.path("metrics.jsonl").exists() {
                command.arg("--resume");
            }
            if size == 1 {
                // One process finishes what many began.
                if killed >= wanted || draw(4) == 0 {
                    succeed(&mut command);
                    is_done = true;
                }
                continue;
            }
            let job = Job::start(size, &command);
            std::thread::sleep(Duration::from_millis(150 + draw(2500)));
            let rank = draw(size as u64) as usize;
            let Some(process) = job.process(rank) else {
                let ended = job.end();
                is_done = ended.status == Some(0);
                continue;
            };
            // One of ten stands still in place of dying.
            let signal = if draw(10) == 0 { libc::SIGSTOP } else { libc::SIGKILL };
            send(process, signal);
            let ended = job.end();
            assert!(ended.took < PATIENCE, "{:?}: {}", ended.took, ended.said);
            slowest = slowest.max(ended.took);
            is_done = ended.status == Some(0);
            killed += u64::from(!is_done);
        }
        Outcome::of(&run, STEPS).check(&expected, "after kills");
        finished += 1;
    }
    println!("{killed} kills in {finished} runs, all of which left the same bytes; the slowest end took {slowest:?}");
}
