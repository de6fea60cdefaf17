//! What the declarations say, for people: a template of all keys, a page of documentation, and one key explained.
use super::document::Document;
use super::problems::Problems;
use super::reader::nearest_key;
use super::rule::{DefaultKind, KeyDoc, SectionDoc};
use super::run::RunConfig;
use crate::system::error::{Error, Result};
use std::fmt::Write;
use std::path::Path;

/// Column at which the template's comments start.
const COMMENT: usize = 33;
/// Width of the template's lines.
const WIDTH: usize = 120;

const TEMPLATE: &str = "\
# Every key with its default; what has none is commented out. `seg4diff config KEY` explains one.
# Relative paths start at the folder that the program is started in. `--set KEY=VALUE` goes over what is written here.
";

const PAGE: &str = "\
# Configuration
A run is described by a TOML file. Unknown keys, wrong types and impossible values are refused before anything is loaded,
all of them at once, each with its line, column and the nearest valid key. `--set train.steps=2000` goes over what the file
says and may be given many times. Relative paths start at the folder that the program is started in. Defaults are what the
published adapters were trained with.

`seg4diff config` prints a file with every key; `seg4diff config lora.rank` or `seg4diff config lora` explains one or a
section's. This page is what `seg4diff config --markdown` prints.
";

/// Every section with its keys, as a file that gives what it must would have them, with `overrides` over that.
///
/// # Errors
/// `Error::Usage` with what is wrong with the overrides.
pub fn sections(overrides: &[String]) -> Result<Vec<SectionDoc>> {
    let file = Path::new("config");
    let mut problems = Problems::new(file);
    let mut document = Document::default();
    let (_, of_nothing) = RunConfig::of_document(Document::default(), file);
    for key in of_nothing.sections().iter().filter(|section| !section.absent).flat_map(|section| &section.keys) {
        if key.default == DefaultKind::Required {
            document.set(&format!("{}={}", key.name, key.value), &mut problems);
        }
    }
    overrides.iter().for_each(|text| document.set(text, &mut problems));
    problems.into_result()?;
    RunConfig::of_document(document, file).1.finish()
}

/// A config with every key, commented; it parses to the defaults with `overrides` (`a.b=c`) over them.
///
/// # Errors
/// `Error::Usage` with what is wrong with the overrides.
pub fn template(overrides: &[String]) -> Result<String> {
    let mut text = TEMPLATE.to_string();
    for section in sections(overrides)? {
        text.push('\n');
        let off = if section.absent { "# " } else { "" };
        if !section.name.is_empty() {
            push_wrapped(&mut text, "# ", &section.doc, WIDTH);
            text += &format!("{off}[{}]\n", section.name);
        }
        for key in &section.keys {
            let has_value = key.given || !matches!(key.default, DefaultKind::Required | DefaultKind::Absent);
            let off = if section.absent || !has_value { "# " } else { off };
            let line = format!("{off}{} = {}", key.short_name(), key.value);
            let mut paragraphs = vec![format!("{}{}", key.doc, key.default_note())];
            paragraphs.extend(key.choices.iter().map(|(name, doc)| format!("{name}: {}", doc.trim())));
            let mut comment = String::new();
            if line.chars().count() < COMMENT {
                let width = WIDTH - COMMENT;
                paragraphs.iter().for_each(|paragraph| push_wrapped(&mut comment, "# ", paragraph, width));
                for (number, comment) in comment.lines().enumerate() {
                    let start = if number == 0 { &line } else { off.trim_end() };
                    let _ = writeln!(text, "{start:<COMMENT$}{comment}");
                }
            } else {
                paragraphs.iter().for_each(|paragraph| push_wrapped(&mut text, "# ", paragraph, WIDTH));
                text += &(line + "\n");
            }
        }
    }
    Ok(text)
}

/// `docs/config.md`.
///
/// # Errors
/// None of the declarations' own making: a test asks for it.
pub fn markdown() -> Result<String> {
    let mut text = PAGE.to_string();
    for section in sections(&[])? {
        if section.name.is_empty() {
            text += "\n## Above all sections\n";
        } else {
            let optional = if section.absent { " (optional)" } else { "" };
            let _ = write!(text, "\n## [{}]{optional}\n{}\n\n", section.name, section.doc);
        }
        text += "| key | values | default | |\n| --- | --- | --- | --- |\n";
        for key in &section.keys {
            let default = match key.default {
                DefaultKind::Required => "required".to_string(),
                DefaultKind::Value => format!("`{}`", key.value),
                DefaultKind::From(source) => source.to_string(),
                DefaultKind::Absent => "none".to_string(),
            };
            let choices = key.choices.iter().map(|(name, doc)| match name.starts_with('"') {
                true => format!("<br>`{name}`: {}", doc.trim()),
                false => format!("<br>{name}: {}", doc.trim()),
            });
            let meaning = format!("{}{}", key.doc, choices.collect::<String>());
            let _ = writeln!(text, "| `{}` | {} | {default} | {meaning} |", key.name, key.values);
        }
    }
    Ok(text)
}

/// What is to know of a key (`lora.rank`) or of all keys of a section (`lora`).
///
/// # Errors
/// `Error::Usage` where there is no such key, with the nearest.
pub fn explain(name: &str) -> Result<String> {
    let sections = sections(&[])?;
    if let Some(section) = sections.iter().find(|section| !section.name.is_empty() && section.name == name) {
        let mut text = String::new();
        push_wrapped(&mut text, "", &section.doc, WIDTH);
        section.keys.iter().for_each(|key| text += &format!("\n{}", key.explained()));
        return Ok(text);
    }
    let keys: Vec<&KeyDoc> = sections.iter().flat_map(|section| &section.keys).collect();
    keys.iter().find(|key| key.name == name).map(|key| key.explained()).ok_or_else(|| {
        let names: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
        Error::Usage(format!("unknown key {name}; the nearest is {}", nearest_key(name, &names)))
    })
}

impl KeyDoc {
    /// Without its section.
    pub fn short_name(&self) -> &str {
        self.name.rsplit_once('.').map_or(&self.name, |(_, name)| name)
    }

    /// What the value in the template does not say of the default.
    fn default_note(&self) -> String {
        match self.default {
            DefaultKind::Required => " Required.".into(),
            DefaultKind::Value => String::new(),
            DefaultKind::From(source) => format!(" Default: {source}."),
            DefaultKind::Absent => " Optional.".into(),
        }
    }

    fn explained(&self) -> String {
        let mut text = format!("{}\n", self.name);
        push_wrapped(&mut text, "    ", &self.doc, WIDTH);
        let _ = writeln!(text, "    Values: {}", self.values);
        for (name, doc) in &self.choices {
            push_wrapped(&mut text, "        ", &format!("{name}: {}", doc.trim()), WIDTH);
        }
        let _ = match self.default {
            DefaultKind::Required => writeln!(text, "    Required, for example {}", self.value),
            DefaultKind::Value => writeln!(text, "    Default: {}", self.value),
            DefaultKind::From(source) => writeln!(text, "    Default: {source}"),
            DefaultKind::Absent => writeln!(text, "    Optional, for example {}", self.value),
        };
        text
    }
}

/// Appends `paragraph` in lines of at most `width` characters that start with `start`. Code in backticks is not broken.
fn push_wrapped(text: &mut String, start: &str, paragraph: &str, width: usize) {
    let mut in_code = false;
    let words = paragraph.split(|c: char| {
        in_code ^= c == '`';
        c == ' ' && !in_code
    });
    let mut line = String::new();
    for word in words {
        if !line.is_empty() && start.len() + line.chars().count() + 1 + word.chars().count() > width {
            let _ = writeln!(text, "{start}{line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += word;
    }
    let _ = writeln!(text, "{start}{line}");
}
