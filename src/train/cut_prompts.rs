//! Prompts that are longer than what the text encoders read.
use crate::distributed::{Collective, gather_values};
use crate::model::text::{CutPrompt, TextEncoders};
use crate::system::error::Result;
use serde::{Deserialize, Serialize};

/// Characters of what is cut that are shown.
const SHOWN: usize = 80;

/// Counts prompts that are cut, and has the first.
#[derive(Default, Serialize, Deserialize)]
pub struct CutPrompts {
    /// Prompts counted.
    pub count: u64,
    cut: u64,
    /// With the sample's number and key.
    first: Option<(u64, String, CutPrompt)>,
}

impl CutPrompts {
    /// Counts the prompt of the sample `key`, which is this number's.
    pub fn add(&mut self, number: u64, key: &str, prompt: &str, encoders: &TextEncoders) -> Result<()> {
        self.count += 1;
        if let Some(cut) = encoders.cut(prompt)? {
            self.cut += 1;
            self.first.get_or_insert_with(|| (number, key.to_owned(), cut));
        }
        Ok(())
    }

    /// The counts of all processes together.
    ///
    /// # Errors
    /// A process has failed.
    pub fn merged(self, collective: &dyn Collective) -> Result<Self> {
        let mut all = Self::default();
        for one in gather_values(collective, self, "counts of prompts")? {
            all.count += one.count;
            all.cut += one.cut;
            all.first = all.first.into_iter().chain(one.first).min_by_key(|(number, ..)| *number);
        }
        Ok(all)
    }

    /// Warns, where some of `these` prompts are cut.
    pub fn warn(&self, these: &str) {
        if let Some((_, key, CutPrompt { encoder, tokens, read, rest })) = &self.first {
            let rest: String = rest.chars().take(SHOWN).collect();
            let what = format!("{key} has {tokens} tokens, {encoder} reads {read} and not {rest:?}");
            tracing::warn!("the text encoders cut prompts: {} of the {these}; {what}", self.cut);
        }
    }
}
