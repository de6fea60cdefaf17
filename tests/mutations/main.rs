//! Mutated inputs of every kind through the real binary, within 2 GB and a time limit: an error or a result, never a
//! panic, a signal, a hang or too much memory, and no run that succeeds without having trained.
//!
//! By default some 300 mutations; `MUTATIONS=10000` sets the number, `MUTATION_SEED=N` the seed, and
//! `MUTATION=KIND:NUMBER` repeats a single one. Failing inputs are kept in the folder that the error names.
#[path = "../folder_copy/mod.rs"]
mod folder_copy;
mod kinds;
#[path = "../limited/mod.rs"]
mod limited;
mod mutate;
#[path = "../original_files/mod.rs"]
mod original_files;
mod world;

use kinds::{KINDS, Kind, NUMBERS, SETTINGS};
use limited::{Ended, run, seg4diff};
use rand::seq::IndexedRandom;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const DEFAULT: u64 = 300;
/// A command takes a second on an idle machine.
const SECONDS: u64 = 60;
/// Outputs of commands; if left in place, they would change the next command.
const WRITTEN: [&str; 2] = ["out", "run"];

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Removes a command's outputs, and restores what `kind` expects there.
fn tidy(folder: &Path, kind: &Kind) {
    for name in WRITTEN {
        let path = folder.join(name);
        let _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
    }
    // `--resume` needs an existing run.
    if kind.args.contains("--resume") {
        folder_copy::copy(&folder.join("run1"), &folder.join("run"));
    }
}

/// Runs mutation `number` of a kind in `folder`, which is restored afterwards; returns how it ended, and the problem,
/// if any.
fn attempt(folder: &Path, kind: &Kind, seed: u64, number: u64) -> (&'static str, Option<String>) {
    let mut random = mutate::random(seed, kind.name, number);
    let mut command = seg4diff(folder);
    command.args(kind.args.split_whitespace());
    let file = folder.join(kind.file);
    let sound = std::fs::read(&file).expect("a sound file");
    let mut set = String::new();
    if kind.name == SETTINGS {
        set = format!("{}={}", NUMBERS.choose(&mut random).expect("settings"), mutate::number(&mut random));
        command.args(["--set", &set]);
    } else {
        let mutated = mutate::mutate(&sound, kind.is_text, kind.checksums, &mut random);
        std::fs::write(&file, &mutated).expect("write");
        mend_sums(&file, &mutated);
    }
    tidy(folder, kind);
    let ended = run(&mut command, SECONDS);
    let (outcome, mut problem) = judge(folder, kind, &ended);
    if let Some(problem) = &mut problem {
        let kept =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mutation-{}-{number}", kind.name.replace(' ', "-")));
        let _ = std::fs::copy(&file, &kept);
        *problem = format!("{}:{number} ({} {set}), kept as {}\n{problem}", kind.name, kind.args, kept.display());
    }
    std::fs::write(&file, &sound).expect("write");
    mend_sums(&file, &sound);
    (outcome, problem)
}

/// Checkpoint files are checked by SHA-256: a mutated file gets a valid one, so that it is read at all.
fn mend_sums(file: &Path, content: &[u8]) {
    let (Some(folder), Some(name)) = (file.parent(), file.file_name().and_then(|name| name.to_str())) else { return };
    let path = folder.join("state.json");
    if name == "state.json" || !path.is_file() {
        return;
    }
    let text = std::fs::read(&path).expect("state");
    let mut state: serde_json::Value = serde_json::from_slice(&text).expect("state");
    let sum: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    state["files"][name] = serde_json::json!({"bytes": content.len(), "sha256": sum});
    std::fs::write(&path, state.to_string()).expect("state");
}

fn judge(folder: &Path, kind: &Kind, ended: &Ended) -> (&'static str, Option<String>) {
    let said = || Some(ended.said.clone());
    match ended.status {
        _ if ended.said.contains("panicked") => ("panic", said()),
        _ if ended.said.contains("error: out of memory") && !kind.may_be_long => ("memory", said()),
        None if ended.said.ends_with("(timed out)") && kind.may_be_long => ("long", None),
        None if ended.said.ends_with("(timed out)") => ("hang", said()),
        None => ("signal", said()),
        Some(0) => match kind.args.starts_with("train") && !kind.args.contains("--check") && !has_learnt(folder) {
            true => ("untrained", said()),
            false => ("passed", None),
        },
        Some(1) => ("failed", None),
        Some(2) => ("refused", None),
        Some(status) => ("other", Some(format!("status {status}: {}", ended.said))),
    }
}

/// Whether a run left a trained adapter: B starts as zeros.
fn has_learnt(folder: &Path) -> bool {
    let Ok(tensors) = seg4diff::model::weights::read_all(&folder.join("run/lora.safetensors")) else { return false };
    let all = tensors.iter().filter(|(name, _)| name.ends_with("lora_B.weight"));
    let sums = all.map(|(_, tensor)| tensor.abs()?.sum_all()?.to_scalar::<f32>());
    sums.flatten().any(|sum| sum > 0.0)
}

#[test]
fn mutated_inputs() {
    let number =
        |name: &str| variable(name).map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text}")));
    let (count, seed) = (number("MUTATIONS").unwrap_or(DEFAULT), number("MUTATION_SEED").unwrap_or(0));
    let template = tempfile::tempdir().expect("folder");
    world::make(template.path());

    let shares: u64 = KINDS.iter().map(|kind| kind.share).sum();
    let of_kind = |kind: &Kind| (count * kind.share).div_ceil(shares);
    // Kinds in rotation, so that an interrupted run has covered all of them.
    let most = KINDS.iter().map(&of_kind).max().unwrap_or(0);
    let mut jobs: Vec<(usize, u64)> = (0..most)
        .flat_map(|number| (0..KINDS.len()).map(move |kind| (kind, number)))
        .filter(|(kind, number)| *number < of_kind(&KINDS[*kind]))
        .collect();
    if let Some(one) = variable("MUTATION") {
        let (name, number) = one.rsplit_once(':').expect("MUTATION=KIND:NUMBER");
        let kind = KINDS.iter().position(|kind| kind.name == name).expect("a kind");
        jobs = vec![(kind, number.parse().expect("a number"))];
    }

    let next = AtomicUsize::new(0);
    let outcomes: Mutex<BTreeMap<(usize, &str), u64>> = Mutex::default();
    let problems: Mutex<Vec<String>> = Mutex::default();
    let workers = std::thread::available_parallelism().map_or(1, |count| count.get()).min(jobs.len());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let folder = tempfile::tempdir().expect("folder");
                folder_copy::copy(template.path(), folder.path());
                while let Some(&(kind, number)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (outcome, problem) = attempt(folder.path(), &KINDS[kind], seed, number);
                    *outcomes.lock().expect("outcomes").entry((kind, outcome)).or_default() += 1;
                    if let Some(problem) = problem {
                        eprintln!("{outcome}: {problem}\n");
                        problems.lock().expect("problems").push(format!("{outcome}: {problem}"));
                    }
                }
            });
        }
    });
    print_table(&outcomes.into_inner().expect("outcomes"));
    let problems = problems.into_inner().expect("problems");
    assert!(problems.is_empty(), "{} of {} mutations:\n{}", problems.len(), jobs.len(), problems.join("\n"));
}

/// Kind × outcome.
fn print_table(outcomes: &BTreeMap<(usize, &str), u64>) {
    let all = ["passed", "failed", "refused", "long", "untrained", "memory", "hang", "panic", "signal", "other"];
    println!("{:24} {:>6} {}", "kind", "count", all.map(|name| format!("{name:>10}")).concat());
    let of = |kind: usize, outcome: &'static str| outcomes.get(&(kind, outcome)).copied().unwrap_or(0);
    let row = |name: &str, counts: &[u64]| {
        let cells: String = counts.iter().map(|count| format!("{count:>10}")).collect();
        println!("{name:24} {:>6} {cells}", counts.iter().sum::<u64>());
    };
    let mut totals = vec![0; all.len()];
    for (kind, Kind { name, .. }) in KINDS.iter().enumerate() {
        let counts: Vec<u64> = all.iter().map(|outcome| of(kind, outcome)).collect();
        totals.iter_mut().zip(&counts).for_each(|(total, count)| *total += count);
        row(name, &counts);
    }
    row("all", &totals);
}
