//! Processes are a seam: threads in the place of processes train one adapter together, and leave the bits of one process
//! with as many micro-batches a step as they have in all.
use candle_core::{Device, Tensor};
use seg4diff::config::RunConfig;
use seg4diff::distributed::{Collective, SingleProcess};
use seg4diff::eval::turns::Turns;
use seg4diff::model::weights::read_all;
use seg4diff::train::checkpoint::{State, list, verify};
use seg4diff::train::gradient_buffer::GradientBuffer;
use seg4diff::train::optimizers::Optimizer;
use seg4diff::train::parameters::{Group, Parameters};
use seg4diff::train::resume::Override;
use seg4diff::train::run_folder::{Resume, RunFolder};
use seg4diff::train::{self, Components};
use seg4diff::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// Where threads meet.
#[derive(Default)]
struct Meeting {
    state: Mutex<Round>,
    changed: Condvar,
}

#[derive(Default)]
struct Round {
    number: u64,
    arrived: BTreeMap<usize, Tensor>,
    gathered: Vec<Tensor>,
    failed: Option<String>,
}

struct Thread {
    rank: usize,
    size: usize,
    meeting: Arc<Meeting>,
}

impl Collective for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>> {
        let mut round = self.meeting.state.lock().expect("lock");
        let number = round.number;
        round.arrived.insert(self.rank, tensor.copy()?);
        if round.arrived.len() == self.size {
            round.gathered = std::mem::take(&mut round.arrived).into_values().collect();
            round.number += 1;
            self.meeting.changed.notify_all();
        }
        while round.number == number {
            if let Some(problem) = &round.failed {
                return Err(Error::Failed(format!("another process failed: {problem}")));
            }
            round = self.meeting.changed.wait(round).expect("lock");
        }
        Ok(round.gathered.clone())
    }

    fn broadcast(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(self.gather(tensor)?.swap_remove(0))
    }

    fn barrier(&self) -> Result<()> {
        self.broadcast(&Tensor::zeros(1, candle_core::DType::U8, &Device::Cpu)?).map(|_| ())
    }

    fn abort(&self, problem: &Error) {
        let mut round = self.meeting.state.lock().expect("lock");
        round.failed.get_or_insert(problem.to_string());
        self.meeting.changed.notify_all();
    }
}

fn config(output: &Path, accumulate: usize, settings: &[&str]) -> RunConfig {
    let mut all = vec![format!("output={}", output.display()), format!("train.accumulate={accumulate}")];
    all.extend(["train.steps=4", "train.batch=2", "data.resolution=64", "checkpoint.every=2"].map(String::from));
    all.extend(settings.iter().map(|setting| setting.to_string()));
    RunConfig::load(Path::new("configs/smoke.toml"), &all).expect("config")
}

type Make = fn(&seg4diff::config::OptimConfig, &Parameters) -> Result<Box<dyn Optimizer>>;

/// Trains by threads, each with the optimizer that `make` gives for its rank; how each of them ended.
fn train(config: &RunConfig, size: usize, resume: &Resume, make: fn(usize) -> Make) -> Vec<Result<Option<String>>> {
    let meeting = Arc::new(Meeting::default());
    let thread = |rank: usize| {
        let collective = Thread { rank, size, meeting: meeting.clone() };
        let open = if rank == 0 { RunFolder::open } else { RunFolder::join };
        let folder = open(&config.output, resume).expect("folder");
        // Another configuration is one with another `accumulate`.
        let components = Components { optimizer: make(rank), collective: &collective, ..Components::default() };
        train::run(config, &Device::Cpu, &folder, &[Override::Settings], &components)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..size).map(|rank| scope.spawn(move || thread(rank))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

fn adamw(_: usize) -> Make {
    Components::default().optimizer
}

/// What a run left, without what differs by the machine's speed.
#[derive(Debug, PartialEq)]
struct Left {
    metrics: Vec<Value>,
    state: State,
    tensors: Vec<(String, Vec<f32>)>,
    lora: Vec<u8>,
}

impl Left {
    fn of(output: &Path) -> Self {
        let text = std::fs::read_to_string(output.join("metrics.jsonl")).expect("metrics");
        let metrics = text.lines().map(|line| {
            let mut line: Value = serde_json::from_str(line).expect("JSON");
            for speed in ["images_per_s", "seconds", "data_wait_s"] {
                line.as_object_mut().expect("object").remove(speed).expect("a speed");
            }
            line.as_object_mut().expect("object").remove("processes");
            line
        });
        let (_, folder) = list(output).expect("list").pop().expect("a checkpoint");
        let mut tensors = vec![];
        for file in ["adapter.safetensors", "optimizer.safetensors"] {
            for (name, tensor) in read_all(&folder.join(file)).expect("tensors") {
                tensors.push((name, tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("values")));
            }
        }
        Self {
            metrics: metrics.collect(),
            state: verify(&folder).expect("whole"),
            tensors,
            lora: std::fs::read(output.join("lora.safetensors")).expect("LoRA"),
        }
    }
}

fn one_process(config: &RunConfig) -> Left {
    let folder = RunFolder::open(&config.output, &Resume::No).expect("folder");
    train::run(config, &Device::Cpu, &folder, &[], &Components { collective: &SingleProcess, ..Components::default() })
        .expect("run");
    Left::of(&config.output)
}

#[test]
fn processes_leave_the_bits_of_one() {
    let folder = tempfile::tempdir().expect("folder");
    for (size, accumulate) in [(2, 1), (2, 2), (3, 1)] {
        let name = |what: &str| folder.path().join(format!("{what}-{size}-{accumulate}"));
        let alone = one_process(&config(&name("alone"), size * accumulate, &[]));
        let together = config(&name("together"), accumulate, &[]);
        for ended in train(&together, size, &Resume::No, adamw) {
            ended.expect("run");
        }
        assert!(Left::of(&together.output) == alone, "{size} processes of {accumulate} micro-batches");
    }
}

/// The position that is saved is that of all: one process goes on from where two were.
#[test]
fn a_run_goes_on_with_another_number_of_processes() {
    let folder = tempfile::tempdir().expect("folder");
    let alone = one_process(&config(&folder.path().join("alone"), 2, &[]));
    let output = folder.path().join("run");
    for ended in train(&config(&output, 1, &[]), 2, &Resume::No, adamw) {
        ended.expect("run");
    }
    let middle = Resume::From(output.join("checkpoints/step-000002"));
    for ended in train(&config(&output, 2, &[]), 1, &middle, adamw) {
        ended.expect("run");
    }
    assert!(Left::of(&output) == alone);
}

/// Fails in its second step.
struct Failing(u64);

impl Optimizer for Failing {
    fn step(&mut self, _: &Parameters, _: &GradientBuffer, _: &dyn Fn(Group) -> f64) -> Result<()> {
        self.0 += 1;
        if self.0 == 2 { Err(Error::Failed("out of order".into())) } else { Ok(()) }
    }

    fn state_dict(&self, _: &Parameters) -> Result<BTreeMap<String, Tensor>> {
        Ok(BTreeMap::new())
    }

    fn load_state_dict(&mut self, _: &Parameters, _: &BTreeMap<String, Tensor>) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_process_that_fails_ends_all() {
    let folder = tempfile::tempdir().expect("folder");
    for failing in
        [|rank| if rank == 1 { failing() } else { adamw(rank) }, |rank| if rank == 0 { failing() } else { adamw(rank) }]
    {
        let output = tempfile::tempdir_in(folder.path()).expect("folder");
        let ended = train(&config(output.path(), 1, &[]), 3, &Resume::No, failing);
        let problems: Vec<String> = ended.into_iter().map(|ended| ended.expect_err("failed").to_string()).collect();
        assert_eq!(problems.iter().filter(|problem| *problem == "out of order").count(), 1, "{problems:?}");
        let told = |problem: &&String| *problem == "another process failed: out of order";
        assert_eq!(problems.iter().filter(told).count(), 2, "{problems:?}");
        assert!(!output.path().join("lora.safetensors").exists());
    }
}

fn failing() -> Make {
    |_, _| Ok(Box::new(Failing(0)))
}

/// One that is asked to stop stops all, after the same step.
#[test]
fn what_one_says_all_hear() {
    let meeting = Arc::new(Meeting::default());
    let asked = |rank: usize| {
        let thread = Thread { rank, size: 3, meeting: meeting.clone() };
        [thread.any(false), thread.any(rank == 2), thread.any(true)].map(|said| said.expect("said"))
    };
    let heard: Vec<[bool; 3]> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|rank| scope.spawn(move || asked(rank))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(heard, [[false, true, true]; 3]);
}

/// Rank 0 has what all have found, in the order of the batches, whoever had which.
#[test]
fn batches_are_taken_in_turns() {
    let meeting = Arc::new(Meeting::default());
    let measure = |rank: usize| {
        let thread = Thread { rank, size: 3, meeting: meeting.clone() };
        let turns = Turns::new(&thread);
        let (mut own, mut all) = (vec![], vec![]);
        let work = |batch: usize| {
            own.push(batch);
            Ok(vec![batch as f64 / 3.0; batch % 3])
        };
        let take = |found: &[f64]| {
            all.push(found.to_vec());
            Ok(())
        };
        turns.gather_each(7, work, take).expect("gathered");
        let pieces = own.iter().map(|batch| (*batch, vec![*batch as u8; *batch])).collect();
        (own, all, turns.pieces_at_main(pieces).expect("pieces"))
    };
    let found: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|rank| scope.spawn(move || measure(rank))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let own: Vec<_> = found.iter().map(|(own, ..)| own.clone()).collect();
    assert_eq!(own, [vec![0, 3, 6], vec![1, 4], vec![2, 5]]);
    let expected: Vec<Vec<f64>> = (0..7).map(|batch| vec![batch as f64 / 3.0; batch % 3]).collect();
    let pieces: Vec<Vec<u8>> = (0..7).map(|batch| vec![batch as u8; batch]).collect();
    assert_eq!((&found[0].1, &found[0].2), (&expected, &pieces));
    assert!(found[1..].iter().all(|(_, all, pieces)| all.is_empty() && pieces.is_empty()));
}

/// Where one is asked to stop, all end after the same round.
#[test]
fn measurements_end_together() {
    let meeting = Arc::new(Meeting::default());
    let measure = |rank: usize| {
        let thread = Thread { rank, size: 3, meeting: meeting.clone() };
        let stop = AtomicBool::new(false);
        let turns = Turns::until(&thread, &stop);
        let mut seen = 0;
        let ended = turns.each(30, |batch| {
            seen += 1;
            stop.store(batch == 13, Ordering::Relaxed);
            Ok(())
        });
        (seen, ended.is_err(), turns.is_stopped(), turns.agree_to_stop().expect("said"))
    };
    let found: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|rank| scope.spawn(move || measure(rank))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(found, [(5, true, true, true); 3]);
}
