//! Class names as prompts, and what the text encoders make of those.
use super::folder::Class;
use crate::error::{Error, Result};
use crate::model::text::tokenizer::CLIP_TOKENS;
use crate::model::text::{TextEmbedding, TextEncoders};
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::path::Path;

/// Names of classes joined by spaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    pub text: String,
    /// Index of each class and the places of its name's tokens among CLIP's, in order.
    pub places: Vec<(u16, Range<usize>)>,
}

/// The names of classes `wanted` (indices into `classes`), whole and in order, over as few prompts as hold them.
///
/// # Errors
/// A name has no tokens, or more than a prompt holds; the error names `file`, where the names are from.
pub fn spread(encoders: &TextEncoders, classes: &[Class], wanted: &[u16], file: &Path) -> Result<Vec<Prompt>> {
    let mut prompts = Vec::new();
    let mut rest = wanted;
    while let Some(&first) = rest.first() {
        let names: Vec<&str> = rest.iter().map(|&index| classes[usize::from(index)].name.as_str()).collect();
        let spans: Vec<Range<usize>> = encoders.token_spans(&names)?.into_iter().map_while(|span| span).collect();
        let (fit, left) = rest.split_at(spans.len());
        if fit.is_empty() {
            let Class { label, name } = &classes[usize::from(first)];
            let tokens = encoders.clip_tokenizer().encode_text(name)?.len();
            let problem =
                format!("the name of label {label}, {name:?}, is {tokens} tokens; expected 1 to {}", CLIP_TOKENS - 2);
            return Err(Error::file(file, problem));
        }
        let places = fit.iter().copied().zip(spans).collect();
        prompts.push(Prompt { text: names[..fit.len()].join(" "), places });
        rest = left;
    }
    Ok(prompts)
}

/// Embeddings of the prompts that were asked for last, so that each is computed once.
pub struct Embeddings<'a> {
    encoders: &'a TextEncoders,
    /// The most recent ones last.
    known: VecDeque<(String, TextEmbedding)>,
    capacity: usize,
}

impl<'a> Embeddings<'a> {
    /// Keeps up to `capacity` embeddings.
    pub fn new(encoders: &'a TextEncoders, capacity: usize) -> Self {
        Self { encoders, known: VecDeque::new(), capacity }
    }

    /// The embeddings of `prompts` as one batch.
    pub fn of(&mut self, prompts: &[&str]) -> Result<TextEmbedding> {
        let is_new = |prompt: &&str| self.known.iter().all(|(known, _)| known != prompt);
        let new: Vec<&str> = prompts.iter().copied().filter(is_new).collect::<BTreeSet<_>>().into_iter().collect();
        if !new.is_empty() {
            let TextEmbedding { context, pooled } = self.encoders.encode(&new)?;
            for (index, prompt) in new.into_iter().enumerate() {
                // Copies, so that one embedding does not keep the memory of all that were computed with it.
                let one = |batch: &candle_core::Tensor| batch.narrow(0, index, 1)?.force_contiguous();
                let embedding = TextEmbedding { context: one(&context)?, pooled: one(&pooled)? };
                self.known.push_back((prompt.to_owned(), embedding));
            }
        }
        let find = |prompt: &&str| self.known.iter().rev().find(|(known, _)| known == prompt).map(|(_, found)| found);
        let batch = TextEmbedding::cat(&prompts.iter().filter_map(find).collect::<Vec<_>>())?;
        while self.known.len() > self.capacity {
            self.known.pop_front();
        }
        Ok(batch)
    }
}
