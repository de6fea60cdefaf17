//! The chat template of a tokenizer: what a prompt is wrapped in before it is cut into tokens (transformers:
//! `apply_chat_template`).
use crate::system::error::{Error, Result};
use crate::system::json::read_json;
use crate::system::limits::MODEL_JSON;
use crate::system::paths::is_file;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Steps that a template may take for each byte of a prompt, and for none.
const STEPS: (u64, u64) = (64, 1 << 20);

/// Stands for a prompt where only what surrounds it is wanted: a character of the private use area, which no template has.
const PLACEHOLDER: &str = "\u{E0FF}";

const NAME: &str = "chat_template";

/// A prompt in its template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplatedPrompt {
    /// The whole.
    pub text: String,
    /// The bytes of it that are the prompt's.
    pub prompt: Range<usize>,
    /// Where those begin in the prompt: a template may leave out spaces at its ends.
    pub start: usize,
}

/// A tokenizer's template for a conversation, of which one message of the user is wanted here.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `eos_token` and so on, which templates may name.
    special: BTreeMap<String, String>,
    /// Where the template is from, for errors.
    file: PathBuf,
    /// Bytes before the prompt.
    before: usize,
}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, or else `chat_template` of `tokenizer_config.json`, as transformers does.
    ///
    /// # Errors
    /// There is none, or it is no template.
    pub fn open(folder: &Path) -> Result<Self> {
        let (own, config) = (folder.join("chat_template.jinja"), folder.join("tokenizer_config.json"));
        let map: serde_json::Map<String, Json> =
            if is_file(&config)? { read_json(&config, MODEL_JSON)? } else { serde_json::Map::new() };
        let (source, file) = match is_file(&own)? {
            true => (MODEL_JSON.read_text(&own).map_err(|e| Error::file(&own, e))?, own),
            false => match map.get(NAME).and_then(default_template) {
                Some(source) => (source.to_owned(), config),
                None => {
                    let problem = "no chat template: expected chat_template.jinja, or chat_template in \
                                   tokenizer_config.json";
                    return Err(Error::file(folder, problem));
                }
            },
        };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| problem(&file, &e))?);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<Value, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_template_owned(NAME, source).map_err(|e| problem(&file, &e))?;
        let text = |value: &Json| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
        let named = map.iter().filter(|(key, _)| key.ends_with("_token"));
        let special = named.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect();
        let template = Self { environment, special, file, before: 0 };
        let around = template.rendered(PLACEHOLDER)?;
        match around.find(PLACEHOLDER) {
            Some(before) => Ok(Self { before, ..template }),
            None => Err(Error::file(&template.file, "the chat template leaves out the user's message")),
        }
    }

    /// A prompt as the user's only message, before an answer that begins without thinking (`add_generation_prompt=True,
    /// enable_thinking=False`).
    ///
    /// # Errors
    /// The template fails, or changes the prompt.
    pub fn apply(&self, prompt: &str) -> Result<TemplatedPrompt> {
        let text = self.rendered(prompt)?;
        let trimmed = prompt.trim();
        let is_there = |part: &&str| text.get(self.before..).is_some_and(|rest| rest.starts_with(part));
        let Some(part) = [prompt, trimmed].into_iter().find(is_there) else {
            return Err(Error::file(&self.file, format!("the chat template does not keep the prompt {prompt:?}")));
        };
        let start = if part.len() == prompt.len() { 0 } else { prompt.len() - prompt.trim_start().len() };
        Ok(TemplatedPrompt { prompt: self.before..self.before + part.len(), text, start })
    }

    fn rendered(&self, prompt: &str) -> Result<String> {
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(STEPS.1 + STEPS.0 * prompt.len() as u64));
        let values = context! {
            messages => [context! { role => "user", content => prompt }],
            tools => (),
            documents => (),
            add_generation_prompt => true,
            enable_thinking => false,
            ..Value::from_pairs(self.special.clone())
        };
        let rendered = environment.get_template(NAME).and_then(|template| template.render(values));
        rendered.map_err(|e| problem(&self.file, &e))
    }
}

/// A template, or of several by their names the usual one.
fn default_template(value: &Json) -> Option<&str> {
    let named = |entry: &&Json| entry.get("name").and_then(Json::as_str) == Some("default");
    value.as_str().or_else(|| value.as_array()?.iter().find(named)?.get("template")?.as_str())
}

fn problem(file: &Path, error: &minijinja::Error) -> Error {
    let place = error.line().map_or(String::new(), |line| format!("line {line}: "));
    let detail = error.detail().map_or(String::new(), |detail| format!(": {detail}"));
    Error::file(file, format!("chat template: {place}{}{detail}", error.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> Result<ChatTemplate> {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("chat_template.jinja"), source).expect("write");
        ChatTemplate::open(folder.path())
    }

    #[test]
    fn a_prompt_is_found_in_its_template() {
        let found = template("<u>\n{{ messages[0].content | trim }}</u>{% if not enable_thinking %}!{% endif %}\n");
        let found = found.and_then(|template| template.apply(" a \u{E9}cat  ")).expect("template");
        assert_eq!(found.text, "<u>\na \u{E9}cat</u>!");
        assert_eq!((&found.text[found.prompt.clone()], found.start), ("a \u{E9}cat", 1));
        let empty = template("<u>{{ messages[0].content }}</u>").and_then(|template| template.apply(""));
        assert_eq!(empty.expect("template").prompt, 3..3);
    }

    #[test]
    fn templates_that_do_not_serve_are_refused() {
        for (source, said) in [
            ("nothing", "leaves out the user's message"),
            ("{% for %}", "line 1"),
            ("{{ raise_exception('only for robots') }}", "only for robots"),
            ("{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}", "fuel"),
        ] {
            let error = template(source).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(said) && error.contains("chat_template.jinja"), "{source}: {error}");
        }
        let error = template("{{ messages[0].content | upper }}").and_then(|template| template.apply("a cat"));
        assert!(error.is_err_and(|error| error.to_string().contains("does not keep the prompt")));
    }
}
