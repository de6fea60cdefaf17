//! The tokens that a tokenizer's folder adds to its vocabulary, as transformers reads them
//! (`PreTrainedTokenizerBase._from_pretrained`, `TokenizersBackend.__init__` of transformers 5).
use crate::system::error::{Error, Result};
use crate::system::guard::guarded;
use crate::system::json::read_json;
use crate::system::limits::MODEL_JSON;
use crate::system::paths::is_file;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use tokenizers::{AddedToken, Tokenizer};

/// `bos_token`, `pad_token` and so on by their names, and the tokens that are split off a text before all else.
pub(super) struct AddedTokens {
    named: BTreeMap<String, AddedToken>,
    /// By their ids in the files, which order them: where they are added, they get the next ids.
    numbered: BTreeMap<u64, AddedToken>,
    /// `extra_special_tokens`, once `additional_special_tokens`.
    extra: Vec<AddedToken>,
}

/// `additional_special_tokens` of a file that also has the new name for them count where the new name has none; those of
/// `special_tokens_map.json`, where no file has the new name.
const EXTRA: &str = "extra_special_tokens";
const ADDITIONAL: &str = "additional_special_tokens";

impl AddedTokens {
    /// Reads `tokenizer_config.json`, whose `added_tokens_decoder` says everything; where that is missing, also
    /// `special_tokens_map.json`, `added_tokens.json` and the `added_tokens` of `tokenizer.json`, of which the later count.
    ///
    /// # Errors
    /// A file cannot be read, or an entry is no token.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut tokens = Self { named: BTreeMap::new(), numbered: BTreeMap::new(), extra: Vec::new() };
        let config = folder.join("tokenizer_config.json");
        let config_map = object(&config)?;
        tokens.take_named(&config_map);
        tokens.take_extra(&config, config_map.get(EXTRA))?;
        if tokens.extra.is_empty() {
            tokens.take_extra(&config, config_map.get(ADDITIONAL))?;
        }
        if let Some(decoder) = config_map.get("added_tokens_decoder") {
            let wrong = |id: &str| Error::file(&config, format!("added_tokens_decoder: {id:?} is no token by its id"));
            for (id, value) in decoder.as_object().ok_or_else(|| wrong("added_tokens_decoder"))? {
                let token = added_token(value, false).ok_or_else(|| wrong(id))?;
                tokens.numbered.insert(id.parse().map_err(|_| wrong(id))?, token);
            }
        } else {
            let map = folder.join("special_tokens_map.json");
            let special = object(&map)?;
            tokens.take_named(&special);
            tokens.take_extra(&map, special.get(EXTRA))?;
            tokens.take_added(&folder.join("added_tokens.json"))?;
            if [&config_map, &special].iter().all(|map| !map.contains_key(EXTRA)) && tokens.extra.is_empty() {
                tokens.take_extra(&map, special.get(ADDITIONAL))?;
            }
            tokens.take_serialised(&folder.join("tokenizer.json"))?;
        }
        for token in tokens.named.values_mut() {
            let listed = tokens.numbered.values().find(|listed| listed.content == token.content);
            *token = listed.cloned().unwrap_or_else(|| token.clone()).special(true);
        }
        Ok(tokens)
    }

    fn take_named(&mut self, map: &Map<String, Value>) {
        let named = map.iter().filter(|(key, _)| key.ends_with("_token"));
        self.named.extend(named.filter_map(|(key, value)| Some((key.clone(), added_token(value, true)?))));
    }

    /// A list of special tokens, or an object of them.
    fn take_extra(&mut self, file: &Path, extra: Option<&Value>) -> Result<()> {
        let values: Vec<&Value> = match extra {
            Some(Value::Array(values)) => values.iter().collect(),
            Some(Value::Object(values)) => values.values().collect(),
            _ => vec![],
        };
        for value in values {
            let token = added_token(value, true);
            let token = token.ok_or_else(|| Error::file(file, format!("the special token {value} is no token")))?;
            if self.extra.iter().all(|other| other.content != token.content) {
                self.extra.push(token);
            }
        }
        Ok(())
    }

    /// `added_tokens.json`: ids by text.
    fn take_added(&mut self, file: &Path) -> Result<()> {
        for (text, id) in object(file)? {
            let wrong = || Error::file(file, format!("the id of {text:?} is {id}, expected a whole number"));
            let id = id.as_u64().ok_or_else(wrong)?;
            let is_special = self.named.values().chain(&self.extra).any(|token| token.content == text);
            self.numbered.insert(id, AddedToken::from(text, is_special));
        }
        Ok(())
    }

    /// The `added_tokens` of a whole tokenizer.
    fn take_serialised(&mut self, file: &Path) -> Result<()> {
        let map = object(file)?;
        let listed = map.get("added_tokens").and_then(Value::as_array);
        for value in listed.into_iter().flatten() {
            let id = value.get("id").and_then(Value::as_u64);
            let (Some(id), Some(token)) = (id, added_token(value, false)) else {
                return Err(Error::file(file, format!("added_tokens: {value} is no token with an id")));
            };
            self.numbered.insert(id, token);
        }
        Ok(())
    }

    /// The text of the token that is named `key`.
    pub fn content<'a>(&'a self, key: &str, default: &'a str) -> &'a str {
        self.named.get(key).map_or(default, |token| &token.content)
    }

    /// Id of the special token `key`.
    pub fn id(&self, key: &str, default: &str, tokenizer: &Tokenizer, folder: &Path) -> Result<u32> {
        let token = self.content(key, default);
        let id = tokenizer.token_to_id(token);
        id.ok_or_else(|| Error::file(folder, format!("{key} {token:?} is not in the vocabulary")))
    }

    /// Adds the tokens to `tokenizer`: those with ids in their order, then those with names (where a name is missing, with
    /// these texts), then the extra ones.
    pub fn add_to(&self, tokenizer: &mut Tokenizer, defaults: &[(&str, &str)], folder: &Path) -> Result<()> {
        let missing = defaults.iter().filter(|(key, _)| !self.named.contains_key(*key));
        let missing: Vec<AddedToken> = missing.map(|(_, text)| AddedToken::from(*text, true)).collect();
        let mut tokens: Vec<AddedToken> = self.numbered.values().cloned().collect();
        for token in self.named.values().chain(&missing).chain(&self.extra) {
            if tokens.iter().all(|other| other.content != token.content) {
                tokens.push(token.clone());
            }
        }
        guarded(|| tokenizer.add_tokens(tokens).map(drop).map_err(|e| e.to_string()))
            .map_err(|e: String| Error::file(folder, e))
    }
}

/// The JSON object in a file, empty where there is no file.
fn object(file: &Path) -> Result<Map<String, Value>> {
    if is_file(file)? { read_json(file, MODEL_JSON) } else { Ok(Map::new()) }
}

/// A token in JSON: a string, or an object with `content` and how it is matched.
fn added_token(value: &Value, is_special: bool) -> Option<AddedToken> {
    match value {
        Value::String(content) => Some(AddedToken::from(content.as_str(), is_special)),
        Value::Object(fields) => {
            let flag = |key: &str| fields.get(key).and_then(Value::as_bool);
            let is_special = is_special || flag("special").unwrap_or(false);
            let token = AddedToken::from(fields.get("content")?.as_str()?, is_special);
            let token = match flag("normalized") {
                Some(normalized) => token.normalized(normalized),
                None => token,
            };
            let flag = |key: &str| flag(key).unwrap_or(false);
            Some(token.single_word(flag("single_word")).lstrip(flag("lstrip")).rstrip(flag("rstrip")))
        }
        _ => None,
    }
}
