//! `config`: the keys of a run's configuration, and what each does.
use super::say;
use crate::config::{explain, markdown, sections, template};
use crate::system::error::Result;
use clap::Args;

const EXAMPLE: &str = "Examples:
  seg4diff config --set output=runs/mine --set train.steps=2000
  seg4diff config lora.rank
  seg4diff config eval";

/// Print a config file with every key, its default and what it does, or explain a key
///
/// Without KEY: a commented TOML file that parses to the defaults. What must be given (output, model.path, data.source)
/// has an example in its place; keys and sections without a default are commented out.
#[derive(Args, Clone, Debug)]
#[command(after_help = keys_and_examples())]
pub struct ConfigArgs {
    /// Explain this key, such as lora.rank, or all keys of a section, such as lora
    #[arg(value_name = "KEY")]
    pub key: Option<String>,
    /// Put one value into the file, such as train.steps=100; may be given many times
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "key")]
    pub set: Vec<String>,
    /// Print the documentation of all keys, docs/config.md
    #[arg(long, conflicts_with_all = ["key", "set"])]
    pub markdown: bool,
}

/// All keys by section, then the examples.
fn keys_and_examples() -> String {
    let mut text = "Keys:\n".to_string();
    for section in sections(&[]).unwrap_or_default() {
        let names: Vec<&str> = section.keys.iter().map(|key| key.short_name()).collect();
        let section = if section.name.is_empty() { String::new() } else { format!("[{}] ", section.name) };
        text += &format!("  {section}{}\n", names.join(", "));
    }
    text + "\n" + EXAMPLE
}

pub fn run(args: &ConfigArgs) -> Result<()> {
    let text = match &args.key {
        Some(key) => explain(key)?,
        None if args.markdown => markdown()?,
        None => template(&args.set)?,
    };
    say(text.trim_end())
}
