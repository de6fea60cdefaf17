//! Tensors of an original checkpoint under diffusers' names: which modules are which, and where one is several.
//!
//! A family, the autoencoder and a text encoder each have a table of [`ModuleNames`]; this is the code that reads them. What a
//! table does not know keeps its name: files in diffusers' own names pass unchanged, and a tensor too many is named as the
//! file has it.
use super::stored::Stored;
use std::collections::HashMap;
use std::ops::Range;

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
    /// Modules that stand alone.
    pub const fn alone(layers: &'static [(&'static str, Shares)]) -> Self {
        Self { original: "", diffusers: "", layers }
    }

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

/// A tensor's name in the original checkpoint, taken apart.
struct Found<'a> {
    modules: &'static ModuleNames,
    numbers: Vec<usize>,
    shares: Shares,
    /// The module's name there.
    module: &'a str,
    /// What follows it: `.weight`, or nothing of a parameter without a module.
    parameter: &'a str,
}

impl Found<'_> {
    /// The tensor's name in diffusers where it belongs to `within`; of blocks counted from the end there are `count`.
    fn name(&self, within: &str, count: usize) -> String {
        // `scale` is the weight of norms in FLUX's code.
        let parameter = if self.parameter == ".scale" { ".weight" } else { self.parameter };
        self.modules.name(&self.numbers, count, within) + parameter
    }
}

impl Naming {
    fn find<'a>(&self, name: &'a str) -> Option<Found<'a>> {
        let (module, parameter) = match name.rsplit_once('.') {
            Some((module, "weight" | "bias" | "scale")) => name.split_at(module.len()),
            _ => (name, ""),
        };
        self.modules.iter().flat_map(|modules| modules.iter()).find_map(|modules| {
            let (numbers, shares) = modules.find(module)?;
            Some(Found { modules, numbers, shares, module, parameter })
        })
    }

    /// `tensors` of an original checkpoint by diffusers' names; of a module that is several each has its own rows.
    ///
    /// # Errors
    /// A tensor's rows do not divide into its parts; names the tensor.
    pub(super) fn present(&self, tensors: HashMap<String, Stored>) -> Result<HashMap<String, Stored>, String> {
        // How many blocks a list has.
        let mut counts = HashMap::<&str, usize>::new();
        for found in tensors.keys().filter_map(|name| self.find(name)) {
            let count = counts.entry(found.modules.original).or_default();
            *count = found.numbers.first().map_or(0, |number| number + 1).max(*count);
        }
        let mut presented = HashMap::with_capacity(tensors.len());
        for (name, stored) in &tensors {
            let Some(found) = self.find(name) else {
                presented.insert(name.clone(), stored.clone());
                continue;
            };
            let count = counts.get(found.modules.original).copied().unwrap_or_default();
            let weight = tensors.get(&format!("{}.weight", found.module)).map(|weight| weight.shape.as_slice());
            let parts = self.parts(&found, stored, weight).map_err(|problem| format!("tensor {name}: {problem}"))?;
            presented.extend(parts.into_iter().map(|(within, part)| (found.name(within, count), part)));
        }
        Ok(presented)
    }

    /// What a tensor is in diffusers, by module; `weight` is the shape of its own module's weight.
    fn parts(
        &self,
        found: &Found,
        stored: &Stored,
        weight: Option<&[usize]>,
    ) -> Result<Vec<(&'static str, Stored)>, String> {
        if let [(within, _)] = found.shares {
            let swaps = matches!(weight, Some([outer, inner]) if (self.swaps_halves)(within, (*inner, *outer)));
            return Ok(vec![(within, if swaps { stored.halves_swapped()? } else { stored.clone() })]);
        }
        let parts = rows_of(found.shares, stored.rows())?;
        parts.map(|(within, rows)| Ok((within, stored.only_rows(rows)?))).collect()
    }
}

/// The modules that a module with so many `rows` is, each with its own of these.
///
/// # Errors
/// They do not divide into its parts.
pub fn rows_of(shares: Shares, rows: usize) -> Result<impl Iterator<Item = (&'static str, Range<usize>)>, String> {
    let all: usize = shares.iter().map(|(_, share)| share).sum();
    if !rows.is_multiple_of(all) {
        return Err(format!("{rows} rows do not divide into its {all} parts"));
    }
    let mut first = 0;
    Ok(shares.iter().map(move |(within, share)| {
        let range = first..first + rows / all * share;
        first = range.end;
        (*within, range)
    }))
}
