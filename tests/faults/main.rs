//! Faults in every system call that matters: the process is killed, the disk is full or broken, file descriptors run
//! out.
//!
//! strace injects one fault into a short run of each command. Whatever the fault, files are complete or absent, nothing
//! panics, an error names its file and its reason, and status 0 means that everything was written. The command without
//! a fault then ends with the bytes of an undisturbed run, and leaves nothing else behind.
//!
//! An error with `+` in the table persists from that call on. `FAULTS` is the number of faults (200):
//! `FAULTS=1000 cargo test --release --test faults -- --nocapture`. Without strace the tests say so and are skipped, or
//! fail if `REQUIRE_STRACE` is set.
#![cfg(target_os = "linux")]
mod commands;
mod outcome;
mod plan;
mod tracer;

use commands::{Case, ROOT, cases, seg4diff};
use outcome::Snapshot;
use plan::AllCalls;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tracer::{Ended, Fault};

/// Outcomes of a command after faults, with their numbers.
type Table = BTreeMap<(&'static str, String, String), BTreeMap<&'static str, usize>>;

/// A case and its undisturbed outcome.
struct Prepared<'a> {
    case: &'a Case,
    before: Snapshot,
    wanted: Snapshot,
    calls: AllCalls,
}

#[test]
fn faults_are_survived() {
    let amount = std::env::var("FAULTS").map_or(200, |text| text.parse().expect("FAULTS is a number"));
    if amount == 0 || !tracer::is_there() {
        assert!(amount == 0 || std::env::var_os("REQUIRE_STRACE").is_none(), "there is no strace");
        println!("no faults were tried: {}", if amount == 0 { "FAULTS is 0" } else { "there is no strace" });
        return;
    }
    let root = tempfile::tempdir().expect("a folder");
    let cases = cases(root.path());
    let prepared = in_parallel(&cases, prepare);
    let calls: Vec<AllCalls> = prepared.iter().map(|prepared| prepared.calls.clone()).collect();
    let plan = plan::plan(&calls, amount);
    let work: Vec<(&Prepared, &Vec<Fault>)> = prepared.iter().zip(&plan).collect();
    let (table, problems) = (Mutex::new(Table::new()), Mutex::new(vec![]));
    in_parallel(&work, |(prepared, faults)| {
        for fault in *faults {
            let (outcome, found) = prepared.disturb(fault);
            let key = (prepared.case.name, fault.call(), fault.kind());
            *table.lock().expect("the table").entry(key).or_default().entry(outcome).or_default() += 1;
            problems.lock().expect("the problems").extend(found);
        }
    });
    let all = show(&table.into_inner().expect("the table"));
    // Prefetching and progress output depend on timing.
    assert!(all.get("not reached").is_none_or(|missed| missed * 10 <= amount), "{all:?}: too few were reached");
    let problems = problems.into_inner().expect("the problems");
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

/// Maps `items` in parallel, one at a time on each core; the results in order.
fn in_parallel<'a, T: Sync, R: Send>(items: &'a [T], work: impl Fn(&'a T) -> R + Sync) -> Vec<R> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(vec![]));
    let one_after_another = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return };
            let result = work(item);
            results.lock().expect("results").push((index, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(one_after_another);
        }
    });
    let mut results = results.into_inner().expect("results");
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Runs a command undisturbed, twice: the second time to trace its calls.
fn prepare(case: &Case) -> Prepared<'_> {
    case.begin();
    let before = Snapshot::of(case);
    let output = seg4diff(case.args()).output().expect("a command");
    assert!(output.status.success(), "{}: {}", case.name, String::from_utf8_lossy(&output.stderr));
    let wanted = Snapshot::of(case);
    assert!(!wanted.is_empty() && wanted.hidden.is_empty(), "{}: {:?}", case.name, wanted.hidden);
    case.begin();
    let (ended, calls) = tracer::calls(case.args(), &case.work.with_extension("logs"), &case.work);
    assert!(ended.status.success(), "{}: {}", case.name, ended.said);
    assert_eq!(Snapshot::of(case).differences(&wanted), [""; 0], "{}", case.name);
    let has = |name: &str, of_input: bool| calls.keys().any(|of| of.name == name && of.input.is_some() == of_input);
    assert!(has("write", false) && (has("openat", true) || case.name == "prepare scenes"), "{}: {calls:?}", case.name);
    Prepared { case, before, wanted, calls }
}

impl Prepared<'_> {
    /// Runs the command with a fault, then again without; returns the outcome and the problems.
    fn disturb(&self, fault: &Fault) -> (&'static str, Vec<String>) {
        let case = self.case;
        let logs = case.work.with_extension("logs");
        case.begin();
        let ended = tracer::disturbed(case.args(), &logs, fault);
        let mut problems = self.check(fault, &ended);
        let left = Snapshot::of(case);
        let outcome = match (ended.status.success(), &ended.hit) {
            (false, _) if ended.is_killed() => "killed",
            (false, _) => "failed",
            (true, Some(_)) => "done all the same",
            (true, None) => "not reached",
        };
        problems.extend(match ended.status.success() {
            true => left.differences(&self.wanted),
            false => left.halves(case, &self.before, &self.wanted),
        });
        let mut again = seg4diff(case.args_again());
        let again = tracer::run(&mut again, &logs);
        if again.status.success() {
            let now = Snapshot::of(case);
            problems.extend(now.differences(&self.wanted).into_iter().map(|problem| format!("after it, {problem}")));
            problems.extend(now.hidden.iter().map(|name| format!("after it, {name} is left")));
        } else {
            problems.push(format!("after it, {}: {}", again.status, again.said));
        }
        let (place, call) = (ended.hit.unwrap_or_default(), fault.call());
        let told = |problem| format!("{}, {} at {call} {} ({place}): {problem}", case.name, fault.kind(), fault.nth);
        (outcome, problems.into_iter().map(told).collect())
    }

    /// Problems with the end of a disturbed command.
    fn check(&self, fault: &Fault, ended: &Ended) -> Vec<String> {
        let mut problems = vec![];
        let said = &ended.said;
        if said.contains("panicked") {
            problems.push(format!("it panicked: {said}"));
        }
        match (ended.status.code(), fault.error) {
            (Some(0), _) => {}
            (None, None) if ended.is_killed() => {}
            // The fault hit the dynamic loader.
            (Some(127), Some(_)) if said.contains("error while loading shared libraries") => {}
            (Some(1 | 2), Some(_)) => {
                let errors: Vec<&str> = said.lines().skip_while(|line| !line.starts_with("error: ")).collect();
                let error = errors.join("\n");
                let own = self.case.work.parent().expect("a folder").display().to_string();
                let folders = [ROOT, own.as_str(), "checkpoints/", "configs/", "data/", "tests/"];
                let names_file = folders.iter().any(|folder| error.contains(folder));
                let is_clear = names_file && error.contains(fault.reason());
                if !is_clear && !ended.is_mute {
                    problems.push(format!("its error names no file or reason: {said}"));
                }
            }
            _ => problems.push(format!("it ended with {}: {said}", ended.status)),
        }
        problems
    }
}

/// Prints the table; returns the number of each outcome.
fn show(table: &Table) -> BTreeMap<&'static str, usize> {
    println!("{:22} {:13} {:8} {:>6}  outcome", "command", "call", "fault", "times");
    let mut all = BTreeMap::new();
    for ((command, call, kind), outcomes) in table {
        let told: Vec<String> = outcomes.iter().map(|(outcome, times)| format!("{outcome} {times}")).collect();
        println!("{command:22} {call:13} {kind:8} {:6}  {}", outcomes.values().sum::<usize>(), told.join(", "));
        for (outcome, times) in outcomes {
            *all.entry(*outcome).or_default() += times;
        }
    }
    let told: Vec<String> = all.iter().map(|(outcome, times)| format!("{outcome} {times}")).collect();
    println!("{} faults: {}", all.values().sum::<usize>(), told.join(", "));
    all
}
