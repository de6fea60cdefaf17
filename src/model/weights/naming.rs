//! Tensors of an original checkpoint under diffusers' names: which modules are which, and where one is several.
//!
//! A family, the autoencoder and a text encoder each have a table of [`ModuleNames`]; this is the code that reads them. What a
//! table does not know keeps its name: files in diffusers' own names pass unchanged, and a tensor too many is named as the
//! file has it.
use super::stored::Stored;
use std::collections::HashMap;

/// Modules of diffusers, each with its share of the rows of one module of the original checkpoint.
pub type Shares = &'static [(&'static str, usize)];

/// Modules whose names begin alike.
#[derive(Debug)]
pub struct ModuleNames {
    /// What their names begin with in the original checkpoint, such as `joint_blocks.*`: `*` is a number. Empty for modules
    /// that stand alone.
    pub original: &'static str,
    /// What they begin with in diffusers, with the same numbers; `^` is one that is counted from the end there.
    pub diffusers: &'static str,
    /// A module in the original checkpoint, and the modules of diffusers that are its rows, in their order.
    pub layers: &'static [(&'static str, Shares)],
}

/// How the tensors of a network are named in its original checkpoint.
#[derive(Debug)]
pub struct Naming {
    /// Its modules.
    pub modules: &'static [&'static [ModuleNames]],
    /// Whether the two halves of a module's rows lie the other way round there, given its name in diffusers within its block
    /// and its inputs and outputs.
    pub swaps_halves: fn(module: &str, sizes: (usize, usize)) -> bool,
}

/// Names that all networks are stored by: nothing is renamed.
pub static SAME_NAMES: Naming = Naming { modules: &[], swaps_halves: |_, _| false };

impl ModuleNames {
    /// The numbers in the name of an original module that is one of these, and what it is in diffusers.
    fn find(&self, module: &str) -> Option<(Vec<usize>, Shares)> {
        let (mut rest, mut numbers) = (module, vec![]);
        for part in self.original.split('.').filter(|part| !part.is_empty()) {
            let (found, behind) = rest.split_once('.')?;
            match part {
                "*" => numbers.push(found.parse().ok()?),
                part if part == found => {}
                _ => return None,
            }
            rest = behind;
        }
        let (_, shares) = self.layers.iter().find(|(layer, _)| *layer == rest)?;
        Some((numbers, shares))
    }

    /// diffusers' name of `module` in the block of these `numbers`; of blocks counted from the end there are `count`.
    fn name(&self, numbers: &[usize], count: usize, module: &str) -> String {
        let mut numbers = numbers.iter();
        let parts = self.diffusers.split('.').filter(|part| !part.is_empty()).map(|part| match part {
            "*" => numbers.next().map_or(String::new(), usize::to_string),
            "^" => numbers.next().map_or(String::new(), |number| (count - 1 - number).to_string()),
            part => part.to_string(),
        });
        parts.chain([module.to_string()]).collect::<Vec<_>>().join(".")
    }
}

impl Naming {
    /// `tensors` of an original checkpoint by diffusers' names; of a module that is several each has its own rows.
    ///
    /// # Errors
    /// A tensor's rows do not divide into its parts; names the tensor.
    pub(super) fn present(&self, tensors: HashMap<String, Stored>) -> Result<HashMap<String, Stored>, String> {
        let mut presented = HashMap::with_capacity(tensors.len());
        let groups = || self.modules.iter().flat_map(|modules| modules.iter());
        let found = |name: &str| {
            let (module, parameter) = match name.rsplit_once('.') {
                Some(split @ (_, "weight" | "bias" | "scale")) => split,
                // A parameter of no module.
                _ => (name, ""),
            };
            groups()
                .find_map(|group| Some((group, group.find(module)?)))
                .map(|found| (module.len(), parameter.len(), found))
        };
        let counts: HashMap<&str, usize> = tensors.keys().filter_map(|name| found(name)).fold(
            HashMap::new(),
            |mut counts, (_, _, (group, (numbers, _)))| {
                let count = counts.entry(group.original).or_default();
                *count = numbers.first().map_or(0, |number| number + 1).max(*count);
                counts
            },
        );
        for (name, stored) in &tensors {
            let Some((module, parameter, (group, (numbers, shares)))) = found(name) else {
                presented.insert(name.clone(), stored.clone());
                continue;
            };
            let parameter = match &name[name.len() - parameter..] {
                // Of norms, in FLUX's code.
                "scale" => ".weight".to_string(),
                "" => String::new(),
                parameter => format!(".{parameter}"),
            };
            let count = counts.get(group.original).copied().unwrap_or_default();
            let diffusers = |within: &str| format!("{}{parameter}", group.name(&numbers, count, within));
            let problem = |problem: String| format!("tensor {name}: {problem}");
            if let [(within, _)] = shares {
                let weight = tensors.get(&format!("{}.weight", &name[..module])).map(|weight| weight.shape.as_slice());
                let swaps = matches!(weight, Some([outer, inner]) if (self.swaps_halves)(within, (*inner, *outer)));
                let stored = if swaps { stored.halves_swapped().map_err(problem)? } else { stored.clone() };
                presented.insert(diffusers(within), stored);
                continue;
            }
            let (rows, all) = (stored.rows(), shares.iter().map(|(_, share)| share).sum::<usize>());
            if !rows.is_multiple_of(all) {
                return Err(problem(format!("{rows} rows do not divide into its {all} parts")));
            }
            let mut first = 0;
            for (within, share) in shares {
                let range = first..first + rows / all * share;
                first = range.end;
                presented.insert(diffusers(within), stored.only_rows(range).map_err(problem)?);
            }
        }
        Ok(presented)
    }
}
