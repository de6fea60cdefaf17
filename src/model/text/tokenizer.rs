//! Prompts to token ids, equal to transformers' `CLIPTokenizer` and `T5TokenizerFast`; and what all tokenizers share.
use super::added_tokens::AddedTokens;
use crate::system::error::{Error, Result};
use crate::system::guard::guarded;
use crate::system::json::read_json;
use crate::system::limits::MODEL_JSON;
use crate::system::paths::is_file;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::{Lowercase, NFC, NormalizerWrapper, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::{Encoding, SplitDelimiterBehavior, Tokenizer};

/// Length of a CLIP prompt: start token, at most 75 tokens of text, end token, padding.
pub const CLIP_TOKENS: usize = 77;

/// The places of a prompt's text between start and end token.
pub const CLIP_TEXT: Range<usize> = 1..CLIP_TOKENS - 1;

/// Tokens of T5, or of the zeros in its place, in diffusers' training script (`--max_sequence_length`).
pub const TRAINING_SEQUENCE_LENGTH: usize = 77;

const CLIP_WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The special tokens of CLIP where its files name none.
const CLIP_SPECIAL: [(&str, &str); 4] = [
    ("bos_token", "<|startoftext|>"),
    ("eos_token", "<|endoftext|>"),
    ("unk_token", "<|endoftext|>"),
    ("pad_token", "<|endoftext|>"),
];

/// A tokenizer of CLIP or T5: prompts to any number of ids, CLIP's to [`CLIP_TOKENS`].
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    /// Whose it is, for people.
    encoder: &'static str,
    /// What begins a prompt; T5's begin with the text.
    start: Option<u32>,
    end: u32,
    pad: u32,
}

impl TextTokenizer {
    /// Opens the folder of a tokenizer of CLIP: `vocab.json` and `merges.txt`, otherwise `tokenizer.json`; with the tokens
    /// that its other files add.
    pub fn open_clip(folder: &Path) -> Result<Self> {
        let special = AddedTokens::read(folder)?;
        let vocabulary = folder.join("vocab.json");
        let mut tokenizer = if is_file(&vocabulary)? {
            let unknown = special.content("unk_token", "<|endoftext|>");
            byte_level_bpe(&vocabulary, &folder.join("merges.txt"), Some(unknown), "</w>")?
        } else {
            open_json(folder, "vocab.json + merges.txt or tokenizer.json")?
        };
        set_rules(&mut tokenizer, set_clip_rules, folder)?;
        // They are split off the text first, including the padding token "!" of the released CLIP-G.
        special.add_to(&mut tokenizer, &CLIP_SPECIAL, folder)?;
        let id = |key: &str, default: &str| special.id(key, default, &tokenizer, folder);
        let start = Some(id("bos_token", "<|startoftext|>")?);
        let (end, pad) = (id("eos_token", "<|endoftext|>")?, id("pad_token", "<|endoftext|>")?);
        Ok(Self { tokenizer, encoder: "CLIP", start, end, pad })
    }

    /// Opens the folder of a tokenizer of T5: `tokenizer.json`, and the tokens that its other files add.
    pub fn open_t5(folder: &Path) -> Result<Self> {
        let mut tokenizer = open_json(folder, "tokenizer.json (spiece.model alone is not supported)")?;
        set_rules(&mut tokenizer, set_t5_rules, folder)?;
        let special = AddedTokens::read(folder)?;
        special.add_to(&mut tokenizer, &[], folder)?;
        let id = |key: &str, default: &str| special.id(key, default, &tokenizer, folder);
        let (end, pad) = (id("eos_token", "</s>")?, id("pad_token", "<pad>")?);
        Ok(Self { tokenizer, encoder: "T5", start: None, end, pad })
    }

    /// The most tokens of text in a prompt of so many `tokens`, without those at its start and end.
    pub fn room(&self, tokens: usize) -> usize {
        tokens.saturating_sub(1 + usize::from(self.start.is_some()))
    }

    /// Ids of a prompt: start token, text as far as there is room, end token, padding; `tokens` in total.
    pub fn encode(&self, prompt: &str, tokens: usize) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = self.start.into_iter().chain(self.encode_text(prompt)?).collect();
        ids.truncate(tokens.saturating_sub(1));
        ids.push(self.end);
        ids.resize(tokens, self.pad);
        Ok(ids)
    }

    /// Ids of a text without special tokens, not truncated; fails if the tokenizer's file describes one that cannot encode
    /// it.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        let encoded = guarded(|| self.tokenizer.encode_fast(text, false).map_err(|e| e.to_string()));
        Ok(encoded.map_err(|e| cannot_encode(text, e))?.get_ids().to_vec())
    }

    /// The bytes of a text that each of its tokens stands for, special tokens left out and none truncated.
    pub fn token_ranges(&self, text: &str) -> Result<Vec<Range<usize>>> {
        Ok(encoding(&self.tokenizer, text)?.get_offsets().iter().map(|&(start, end)| start..end).collect())
    }

    /// What [`encode`](Self::encode) leaves out of a prompt.
    pub fn cut(&self, prompt: &str, tokens: usize) -> Result<Option<CutPrompt>> {
        let (tokens, read) = (self.encode_text(prompt)?.len(), self.room(tokens));
        if tokens <= read {
            return Ok(None);
        }
        let end = self.token_ranges(prompt)?.get(read.saturating_sub(1)).map_or(0, |range| range.end);
        let rest = prompt.get(end..).unwrap_or_default().trim().to_owned();
        Ok(Some(CutPrompt { encoder: self.encoder.to_string(), tokens, read, rest }))
    }

    /// The range of each name's tokens in the prompt of all names joined by spaces, whose text is at `places`. `None` for
    /// names without tokens, for the first name that does not fit whole, and for all names after it.
    pub fn token_spans(&self, names: &[&str], places: Range<usize>) -> Result<Vec<Option<Range<usize>>>> {
        let mut next = places.start;
        let mut spans = Vec::with_capacity(names.len());
        for name in names {
            let span = next..next + self.encode_text(name)?.len();
            next = span.end;
            spans.push((!span.is_empty() && span.end <= places.end).then_some(span));
        }
        Ok(spans)
    }
}

/// A prompt that is longer than what an encoder reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutPrompt {
    /// The encoder, for people.
    pub encoder: String,
    /// Tokens of the prompt, without special ones.
    pub tokens: usize,
    /// The most that the encoder reads.
    pub read: usize,
    /// The text behind those.
    pub rest: String,
}

/// A text's tokens with their places in it; fails if the tokenizer's file describes one that cannot encode it.
pub(super) fn encoding(tokenizer: &Tokenizer, text: &str) -> Result<Encoding> {
    let encoded = guarded(|| tokenizer.encode(text, false).map_err(|e| e.to_string()));
    encoded.map_err(|e| cannot_encode(text, e))
}

fn cannot_encode(text: &str, problem: String) -> Error {
    Error::Failed(format!("{text:?}: the tokenizer: {problem}"))
}

/// Refuses ids of prompts that an encoder, with the sizes in `file`, has no embeddings for.
pub(super) fn check_ids<'a>(file: &Path, vocab_size: usize, ids: impl IntoIterator<Item = &'a u32>) -> Result<()> {
    match ids.into_iter().find(|id| **id as usize >= vocab_size) {
        Some(id) => Err(Error::file(file, format!("vocab_size is {vocab_size}, but the tokenizer yields token {id}"))),
        None => Ok(()),
    }
}

/// Refuses prompts that are longer than an encoder, with the sizes in `file`, has positions.
pub(super) fn check_length(file: &Path, positions: usize, tokens: usize) -> Result<()> {
    if tokens <= positions {
        return Ok(());
    }
    Err(Error::file(file, format!("max_position_embeddings is {positions}, but prompts have {tokens} tokens")))
}

/// Has the tokenizer in `folder` follow these rules.
pub(super) fn set_rules(
    tokenizer: &mut Tokenizer,
    rules: fn(&mut Tokenizer) -> tokenizers::Result<()>,
    folder: &Path,
) -> Result<()> {
    guarded(|| rules(tokenizer).map_err(|e| e.to_string())).map_err(|e: String| Error::file(folder, e))
}

/// Opens `tokenizer.json` without its truncation and padding; `expected` is for the error message.
pub(super) fn open_json(folder: &Path, expected: &str) -> Result<Tokenizer> {
    let file = folder.join("tokenizer.json");
    if !is_file(&file)? {
        return Err(Error::file(folder, format!("no tokenizer: expected {expected}")));
    }
    let bytes = MODEL_JSON.read(&file).map_err(|e| Error::file(&file, e))?;
    let read = guarded(|| Tokenizer::from_bytes(&bytes).map_err(|e| e.to_string()));
    let mut tokenizer = read.map_err(|e: String| Error::file(&file, e))?;
    tokenizer.with_padding(None).with_truncation(None).map_err(|e| Error::file(&file, e))?;
    Ok(tokenizer)
}

/// Normalization and pre-tokenization of CLIP. As in transformers, they do not depend on `tokenizer.json`.
fn set_clip_rules(tokenizer: &mut Tokenizer) -> tokenizers::Result<()> {
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_string()), " ")?;
    tokenizer.with_normalizer(Some(Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()])))?;
    let words = Split::new(SplitPattern::Regex(CLIP_WORDS.to_string()), SplitDelimiterBehavior::Removed, true)?;
    let bytes = ByteLevel::new(false, true, true);
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![words.into(), bytes.into()])));
    Ok(())
}

/// Normalization and pre-tokenization of T5. As in transformers, only SentencePiece's normalizer of `tokenizer.json` is
/// kept.
fn set_t5_rules(tokenizer: &mut Tokenizer) -> tokenizers::Result<()> {
    let all = match tokenizer.get_normalizer() {
        Some(NormalizerWrapper::Sequence(sequence)) => sequence.as_ref().to_vec(),
        other => other.cloned().into_iter().collect(),
    };
    let table = all.into_iter().find(|normalizer| matches!(normalizer, NormalizerWrapper::Precompiled(_)));
    tokenizer.with_normalizer(table)?;
    let words = Metaspace::new('▁', PrependScheme::Always, true);
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![WhitespaceSplit.into(), words.into()])));
    Ok(())
}

/// Byte-level BPE from `vocab.json` and `merges.txt`, whose last token of a word ends in `suffix`.
pub(super) fn byte_level_bpe(
    vocabulary: &Path,
    merges: &Path,
    unknown: Option<&str>,
    suffix: &str,
) -> Result<Tokenizer> {
    let vocab: BTreeMap<String, u32> = read_json(vocabulary, MODEL_JSON)?;
    let pairs = read_merges(merges, &vocab)?;
    let build = || {
        let builder = BPE::builder()
            .vocab_and_merges(vocab.into_iter().collect::<Vocab>(), pairs)
            .continuing_subword_prefix(String::new())
            .end_of_word_suffix(suffix.to_string());
        let builder = match unknown {
            Some(unknown) => builder.unk_token(unknown.to_string()),
            None => builder,
        };
        builder.build().map_err(|e| e.to_string())
    };
    Ok(Tokenizer::new(guarded(build).map_err(|e: String| Error::file(vocabulary, e))?))
}

/// Reads `merges.txt`: one pair a line, by descending priority. Merges missing from the vocabulary are refused here,
/// since the crate would panic.
fn read_merges(file: &Path, vocab: &BTreeMap<String, u32>) -> Result<Vec<(String, String)>> {
    let text = MODEL_JSON.read_text(file).map_err(|e| Error::file(file, e))?;
    let mut pairs = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("#version") || line.trim().is_empty() {
            continue;
        }
        let place = |problem: String| Error::file(file, format!("line {}: {problem}", number + 1));
        let (left, right) = line
            .split_once(' ')
            .filter(|(_, right)| !right.contains(' '))
            .ok_or_else(|| place(format!("expected two symbols with a space between, found {line:?}")))?;
        let merged = format!("{left}{right}");
        if let Some(absent) = [left, right, &merged].into_iter().find(|symbol| !vocab.contains_key(*symbol)) {
            return Err(place(format!("{absent:?} is not in vocab.json")));
        }
        pairs.push((left.to_string(), right.to_string()));
    }
    Ok(pairs)
}
