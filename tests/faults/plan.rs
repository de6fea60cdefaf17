//! Chooses the faults to try: as many as asked for, spread evenly over commands, calls and kinds, deterministically.
use super::tracer::{CALLS, Calls, Fault};
use std::collections::{BTreeMap, BTreeSet};

/// A command's calls that faults can be injected into, by their numbers.
pub type AllCalls = BTreeMap<Calls, BTreeSet<usize>>;

/// Picks `amount` faults for commands with these calls; a list for each command.
pub fn plan(commands: &[AllCalls], amount: usize) -> Vec<Vec<Fault>> {
    // A cell: a command's calls of one name, about its inputs or about other files, with one kind of fault.
    let mut cells: BTreeMap<_, Vec<Fault>> = BTreeMap::new();
    for (command, all) in commands.iter().enumerate() {
        for (calls, numbers) in all {
            let (_, errors) = CALLS.iter().find(|(known, _)| *known == calls.name).expect("a known call");
            let once = std::iter::once((None, false)).chain(errors.iter().map(|error| (Some(*error), false)));
            // Failed reads are retried: here the error persists.
            let lasting = errors.iter().map(|error| (Some(*error), true)).filter(|_| calls.input.is_some());
            for (error, lasts) in once.chain(lasting) {
                let cell = cells.entry((command, calls.name, calls.input.is_some(), error, lasts)).or_default();
                cell.extend(numbers.iter().map(|nth| Fault { calls: calls.clone(), nth: *nth, error, lasts }));
            }
        }
    }
    let quotas = quotas(&cells.values().map(Vec::len).collect::<Vec<_>>(), amount);
    let mut plan = vec![vec![]; commands.len()];
    for (place, (((command, ..), faults), quota)) in cells.iter().zip(quotas).enumerate() {
        for index in 0..quota {
            // If a cell gets one fault, the call differs between cells.
            let one =
                if quota == 1 { (place * 7) % faults.len() } else { (2 * index + 1) * faults.len() / (2 * quota) };
            plan[*command].push(faults[one].clone());
        }
    }
    plan
}

/// Number of faults from each cell: `amount` in total, none more than it has, as equal as possible; with fewer faults
/// than cells, every n-th cell gets one.
fn quotas(sizes: &[usize], amount: usize) -> Vec<usize> {
    if amount < sizes.len() {
        return (0..sizes.len()).map(|cell| (cell + 1) * amount / sizes.len() - cell * amount / sizes.len()).collect();
    }
    let total = |most: usize| sizes.iter().map(|size| (*size).min(most)).sum::<usize>();
    let largest = sizes.iter().copied().max().unwrap_or(0);
    let most = (0..=largest).find(|most| total(*most) >= amount).unwrap_or(largest);
    let mut spare = total(most).saturating_sub(amount);
    let mut quotas: Vec<usize> = sizes.iter().map(|size| (*size).min(most)).collect();
    for quota in quotas.iter_mut().rev().filter(|quota| **quota == most && most > 1) {
        if spare == 0 {
            break;
        }
        (*quota, spare) = (*quota - 1, spare - 1);
    }
    quotas
}
