//! Class names as prompts, and their text embeddings.
use super::folder::{Class, LabelledFolder, LabelledImage};
use crate::config::SegmentationProtocol;
use crate::model::text::{NameTokens, TextEmbedding, TextEncoders};
use crate::system::error::{Error, Result};
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

/// Embeddings in the cache: 160 MB with text encoders such as SD3's.
const KEPT: usize = 64;

/// Class names joined by spaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// The text that is encoded.
    pub text: String,
    /// Index of each class, and the range of its name's tokens among the word tokens, in order.
    pub places: Vec<(u16, Range<usize>)>,
}

/// The class names of a data set and their numbers of tokens.
pub struct Vocabulary<'a> {
    classes: &'a [Class],
    tokens: Vec<NameTokens>,
    /// The places of a prompt's text among the word tokens.
    room: Range<usize>,
}

impl<'a> Vocabulary<'a> {
    /// # Errors
    /// A name has no tokens, or too many for a prompt; the error names the class list.
    pub fn new(encoders: &TextEncoders, data: &'a LabelledFolder) -> Result<Self> {
        let classes = &data.classes;
        let room = encoders.text_places();
        let count = |Class { label, name }: &Class| match encoders.token_spans(&[name])?.pop().flatten() {
            Some(_) => encoders.tokens_of_name(name),
            None => {
                let (found, most) = (encoders.count_tokens(name)?, room.len());
                let problem = format!("the name of label {label}, {name:?}, is {found} tokens; expected 1 to {most}");
                Err(Error::file(&data.classes_file, problem))
            }
        };
        Ok(Self { classes, tokens: classes.iter().map(count).collect::<Result<_>>()?, room })
    }

    /// The names of the `wanted` classes in order, in as few prompts as possible; names are never split.
    ///
    /// # Panics
    /// If a class does not exist.
    pub fn prompts(&self, wanted: &[u16]) -> Vec<Prompt> {
        let mut prompts: Vec<Prompt> = Vec::new();
        for &index in wanted {
            let (name, tokens) = (&self.classes[usize::from(index)].name, self.tokens[usize::from(index)]);
            let used = prompts.last().and_then(|prompt| prompt.places.last()).map(|(_, place)| place.end);
            let next = used.map(|used| used + tokens.between);
            match (prompts.last_mut(), next) {
                (Some(prompt), Some(next)) if next + tokens.behind <= self.room.end => {
                    prompt.text = format!("{} {name}", prompt.text);
                    prompt.places.push((index, next..next + tokens.behind));
                }
                _ => {
                    let place = self.room.start..self.room.start + tokens.first;
                    prompts.push(Prompt { text: name.clone(), places: vec![(index, place)] });
                }
            }
        }
        prompts
    }

    /// The prompts of an image.
    pub fn prompts_of(&self, image: &LabelledImage, protocol: SegmentationProtocol) -> Vec<Prompt> {
        match protocol {
            SegmentationProtocol::Present => self.prompts(&image.truth.present()),
            SegmentationProtocol::All => self.all(),
        }
    }

    /// Prompts with all class names.
    pub fn all(&self) -> Vec<Prompt> {
        self.prompts(&(0..).take(self.classes.len()).collect::<Vec<u16>>())
    }
}

/// A cache of the last prompts' embeddings.
pub struct Embeddings<'a> {
    encoders: &'a TextEncoders,
    /// Oldest first; of equal prompts the last counts.
    pub known: VecDeque<(String, TextEmbedding)>,
}

impl<'a> Embeddings<'a> {
    /// None yet.
    pub fn new(encoders: &'a TextEncoders) -> Self {
        Self { encoders, known: VecDeque::new() }
    }

    /// The embeddings of `prompts` as one batch.
    pub fn of(&mut self, prompts: &[&str]) -> Result<TextEmbedding> {
        let is_new = |prompt: &&str| self.known.iter().all(|(known, _)| known != prompt);
        let new: Vec<&str> = prompts.iter().copied().filter(is_new).collect::<BTreeSet<_>>().into_iter().collect();
        if !new.is_empty() {
            let TextEmbedding { context, pooled, zeros } = self.encoders.encode(&new)?;
            for (index, prompt) in new.into_iter().enumerate() {
                // Copies, so that one embedding does not keep the whole batch's memory.
                let one = |batch: &candle_core::Tensor| batch.narrow(0, index, 1)?.force_contiguous();
                let embedding = TextEmbedding { context: one(&context)?, pooled: one(&pooled)?, zeros };
                self.known.push_back((prompt.to_owned(), embedding));
            }
        }
        let find = |prompt: &&str| self.known.iter().rev().find(|(known, _)| known == prompt).map(|(_, found)| found);
        let batch = TextEmbedding::cat(&prompts.iter().filter_map(find).collect::<Vec<_>>())?;
        while self.known.len() > KEPT {
            self.known.pop_front();
        }
        Ok(batch)
    }
}
