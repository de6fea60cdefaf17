//! Prompts in their chat template to token ids, equal to transformers' `Qwen2Tokenizer`.
use super::added_tokens::AddedTokens;
use super::chat_template::{ChatTemplate, TemplatedPrompt};
use super::tokenizer::{CutPrompt, byte_level_bpe, encoding, open_json, set_rules};
use crate::system::error::{Error, Result};
use crate::system::json::read_json;
use crate::system::limits::MODEL_JSON;
use crate::system::paths::is_file;
use std::ops::Range;
use std::path::Path;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

/// What a text is split into before pairs are merged (transformers: `PRETOKENIZE_REGEX`).
const WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The special tokens of Qwen where its files name none.
const SPECIAL: [(&str, &str); 2] = [("eos_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")];

/// A prompt's ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QwenTokens {
    /// With padding at the end.
    pub ids: Vec<u32>,
    /// How many are no padding; at least one.
    pub filled: usize,
}

/// A tokenizer of Qwen with its chat template.
pub struct QwenTokenizer {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    pad: u32,
    /// Tokens of the template before a prompt.
    before: usize,
}

/// A token of a templated prompt that stands for bytes of the prompt alone.
struct PromptToken {
    /// Its number in the whole sequence.
    place: usize,
    /// Its bytes in the prompt.
    bytes: Range<usize>,
}

impl QwenTokenizer {
    /// Opens a tokenizer's folder: `tokenizer.json`, otherwise `vocab.json` and `merges.txt`; with the tokens that its other
    /// files add, and the chat template.
    ///
    /// # Errors
    /// A file is missing, or damaged.
    pub fn open(folder: &Path) -> Result<Self> {
        let special = AddedTokens::read(folder)?;
        let vocabulary = folder.join("vocab.json");
        let mut tokenizer = match !is_file(&folder.join("tokenizer.json"))? && is_file(&vocabulary)? {
            true => byte_level_bpe(&vocabulary, &folder.join("merges.txt"), None, "")?,
            false => open_json(folder, "tokenizer.json or vocab.json + merges.txt")?,
        };
        set_rules(&mut tokenizer, set_qwen_rules, folder)?;
        special.add_to(&mut tokenizer, &SPECIAL, folder)?;
        check_padding_side(folder)?;
        let pad = special.id("pad_token", SPECIAL[1].1, &tokenizer, folder)?;
        let mut opened = Self { tokenizer, template: ChatTemplate::open(folder)?, pad, before: 0 };
        opened.before = opened.tokens("a")?.first().map_or(0, |token| token.place);
        Ok(opened)
    }

    /// Ids of a prompt in its template, cut or padded to `tokens`.
    ///
    /// # Errors
    /// The template or the tokenizer fails.
    pub fn encode(&self, prompt: &str, tokens: usize) -> Result<QwenTokens> {
        let TemplatedPrompt { text, .. } = self.template.apply(prompt)?;
        let mut ids = encoding(&self.tokenizer, &text)?.get_ids().to_vec();
        ids.truncate(tokens);
        let filled = ids.len().max(1);
        ids.resize(tokens, self.pad);
        Ok(QwenTokens { ids, filled })
    }

    /// A prompt in its template.
    ///
    /// # Errors
    /// The template fails, or changes the prompt.
    pub fn templated(&self, prompt: &str) -> Result<String> {
        Ok(self.template.apply(prompt)?.text)
    }

    /// Tokens of the template before a prompt.
    pub fn before(&self) -> usize {
        self.before
    }

    /// The number of tokens of a prompt, those of the template left out.
    ///
    /// # Errors
    /// The template or the tokenizer fails.
    pub fn count(&self, prompt: &str) -> Result<usize> {
        Ok(self.tokens(prompt)?.len())
    }

    /// The places of a prompt's tokens in the whole sequence.
    ///
    /// # Errors
    /// The template or the tokenizer fails.
    pub fn places(&self, prompt: &str) -> Result<Range<usize>> {
        Ok(self.before..self.before + self.count(prompt)?)
    }

    /// The bytes of a prompt that each of its tokens stands for, none cut off.
    ///
    /// # Errors
    /// The template or the tokenizer fails.
    pub fn token_ranges(&self, prompt: &str) -> Result<Vec<Range<usize>>> {
        Ok(self.tokens(prompt)?.into_iter().map(|token| token.bytes).collect())
    }

    /// The range of each name's tokens in the prompt of all names joined by spaces; empty for names without tokens. A
    /// space before a name belongs to the name's first token, or is a token of its own between two names.
    ///
    /// # Errors
    /// The template or the tokenizer fails.
    pub fn spans(&self, names: &[&str]) -> Result<Vec<Range<usize>>> {
        let tokens = self.tokens(&names.join(" "))?;
        let mut start = 0;
        let span = |name: &&str| {
            let bytes = start..start + name.len();
            start = bytes.end + 1;
            let is_of_name = |token: &&PromptToken| token.bytes.start < bytes.end && bytes.start < token.bytes.end;
            let mut places = tokens.iter().filter(is_of_name).map(|token| token.place);
            let first = places.next();
            first.map_or(0..0, |first| first..places.next_back().unwrap_or(first) + 1)
        };
        Ok(names.iter().map(span).collect())
    }

    /// What is left out of a prompt in a sequence of so many `tokens`.
    ///
    /// # Errors
    /// The template or the tokenizer fails.
    pub fn cut(&self, prompt: &str, tokens: usize) -> Result<Option<CutPrompt>> {
        let all = self.tokens(prompt)?;
        let read = all.iter().filter(|token| token.place < tokens).count();
        if read == all.len() {
            return Ok(None);
        }
        let end = all[..read].last().map_or(0, |token| token.bytes.end);
        let rest = prompt.get(end..).unwrap_or_default().trim().to_owned();
        Ok(Some(CutPrompt { encoder: "Qwen3".into(), tokens: all.len(), read, rest }))
    }

    /// A templated prompt's tokens that stand for bytes of the prompt alone.
    fn tokens(&self, prompt: &str) -> Result<Vec<PromptToken>> {
        let TemplatedPrompt { text, prompt: bytes, start } = self.template.apply(prompt)?;
        let encoding = encoding(&self.tokenizer, &text)?;
        let of_prompt = |(place, &(first, end)): (usize, &(usize, usize))| {
            let is_within = bytes.start <= first && first < end && end <= bytes.end;
            let in_prompt = |byte: usize| byte.saturating_sub(bytes.start) + start;
            is_within.then(|| PromptToken { place, bytes: in_prompt(first)..in_prompt(end) })
        };
        Ok(encoding.get_offsets().iter().enumerate().filter_map(of_prompt).collect())
    }
}

/// Normalization and pre-tokenization of Qwen2. As in transformers, they do not depend on `tokenizer.json`.
fn set_qwen_rules(tokenizer: &mut Tokenizer) -> tokenizers::Result<()> {
    tokenizer.with_normalizer(Some(NFC))?;
    let words = Split::new(SplitPattern::Regex(WORDS.to_string()), SplitDelimiterBehavior::Isolated, false)?;
    // Spaces stay with the token that they begin.
    let bytes = ByteLevel::new(false, false, false);
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![words.into(), bytes.into()])));
    Ok(())
}

fn check_padding_side(folder: &Path) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Sides {
        padding_side: Option<String>,
        truncation_side: Option<String>,
    }
    let file = folder.join("tokenizer_config.json");
    if !is_file(&file)? {
        return Ok(());
    }
    let Sides { padding_side, truncation_side } = read_json(&file, MODEL_JSON)?;
    for (key, side) in [("padding_side", padding_side), ("truncation_side", truncation_side)] {
        if let Some(side) = side.filter(|side| side != "right") {
            return Err(Error::file(&file, format!("{key} is {side:?}, expected \"right\"")));
        }
    }
    Ok(())
}
