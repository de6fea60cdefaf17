//! Which faults are tried: as many as asked for, spread evenly over commands, calls and kinds, always the same.
use super::tracer::{CALLS, Fault};
use std::collections::{BTreeMap, BTreeSet};

/// Calls of a command: their names, and which of them are about its files.
pub type Calls = BTreeMap<&'static str, BTreeSet<usize>>;

/// Picks `amount` faults for commands that make these calls; a list for each.
pub fn plan(commands: &[Calls], amount: usize) -> Vec<Vec<Fault>> {
    let mut cells = vec![];
    for (command, calls) in commands.iter().enumerate() {
        for (call, numbers) in calls {
            let (_, errors) = CALLS.iter().find(|(known, _)| known == call).expect("a known call");
            for error in std::iter::once(None).chain(errors.iter().map(|error| Some(*error))) {
                cells.push((command, *call, error, numbers.iter().copied().collect::<Vec<_>>()));
            }
        }
    }
    let mut plan = vec![vec![]; commands.len()];
    for (place, (command, call, error, numbers)) in cells.iter().enumerate() {
        let quota = quotas(&cells.iter().map(|cell| cell.3.len()).collect::<Vec<_>>(), amount)[place];
        for index in 0..quota {
            // With one of a cell, another place in each cell.
            let shift =
                if quota == 1 { (place * 7) % numbers.len() } else { (2 * index + 1) * numbers.len() / (2 * quota) };
            plan[*command].push(Fault { call, nth: numbers[shift], error: *error });
        }
    }
    plan
}

/// How many of each cell are taken, so that all together are `amount`, none more than it has, and all as equal as can
/// be; where there are fewer than cells, every so many-th cell has one.
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
