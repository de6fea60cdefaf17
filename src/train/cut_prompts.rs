//! Prompts that are longer than what the text encoders read.
use crate::model::text::{CutPrompt, TextEncoders};
use crate::system::error::Result;

/// Characters of what is cut that are shown.
const SHOWN: usize = 80;

/// Counts prompts that are cut, and has the first.
#[derive(Default)]
pub struct CutPrompts {
    count: u64,
    cut: u64,
    first: Option<(String, CutPrompt)>,
}

impl CutPrompts {
    /// Counts the prompt of the sample `key`.
    pub fn add(&mut self, key: &str, prompt: &str, encoders: &TextEncoders) -> Result<()> {
        self.count += 1;
        if let Some(cut) = encoders.cut(prompt)? {
            self.cut += 1;
            self.first.get_or_insert_with(|| (key.to_owned(), cut));
        }
        Ok(())
    }

    /// Prompts counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Warns, where some of `these` prompts are cut.
    pub fn warn(&self, these: &str) {
        if let Some((key, CutPrompt { encoder, tokens, read, rest })) = &self.first {
            let rest: String = rest.chars().take(SHOWN).collect();
            let what = format!("{key} has {tokens} tokens, {encoder} reads {read} and not {rest:?}");
            tracing::warn!("the text encoders cut prompts: {} of the {these}; {what}", self.cut);
        }
    }
}
