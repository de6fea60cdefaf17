//! The commands of `seg4diff`, and how they start and end.
use super::{analyze, config, evaluate, export, generate, inspect, prepare, probe, train};
use crate::system::error::{Error, Result};
use crate::system::log;
use crate::system::{process, terminal::complain};
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Mask-aligned LoRA training for text-to-image diffusion transformers.
#[derive(Debug, Parser)]
#[command(name = "seg4diff", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(train::TrainArgs),
    Inspect(inspect::InspectArgs),
    Generate(generate::GenerateArgs),
    Probe(probe::ProbeArgs),
    Export(export::ExportArgs),
    Config(config::ConfigArgs),
    Analyze(analyze::AnalyzeArgs),
    #[command(subcommand)]
    Evaluate(EvaluateCommand),
    #[command(subcommand)]
    Prepare(prepare::PrepareCommand),
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of the command; `Error::Usage` for wrong arguments.
    pub fn run(&self) -> Result<()> {
        match &self.command {
            Command::Train(args) => train::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Generate(args) => generate::run(args),
            Command::Probe(args) => probe::run(args),
            Command::Export(args) => export::run(args),
            Command::Config(args) => config::run(args),
            Command::Analyze(args) => analyze::run(args),
            Command::Evaluate(command) => command.run(),
            Command::Prepare(command) => command.run(),
        }
    }
}

/// Measure a model
#[derive(Clone, Debug, Subcommand)]
enum EvaluateCommand {
    Segmentation(evaluate::segmentation::SegmentationArgs),
    Unsupervised(evaluate::unsupervised::UnsupervisedArgs),
    Referring(evaluate::referring::ReferringArgs),
    Generation(evaluate::generation::GenerationArgs),
    Fid(evaluate::fid::FidArgs),
    ClipScore(evaluate::clip_score::ClipScoreArgs),
}

impl EvaluateCommand {
    fn run(&self) -> Result<()> {
        match self {
            Self::Segmentation(args) => evaluate::segmentation::run(args),
            Self::Unsupervised(args) => evaluate::unsupervised::run(args),
            Self::Referring(args) => evaluate::referring::run(args),
            Self::Generation(args) => evaluate::generation::run(args),
            Self::Fid(args) => evaluate::fid::run(args),
            Self::ClipScore(args) => evaluate::clip_score::run(args),
        }
    }
}

/// Starts logging and threads, runs a command, prints its error if it fails, and returns the exit status.
pub fn finish(command: impl FnOnce() -> Result<()>) -> ExitCode {
    let Err(error) = log::init().and_then(|()| process::prepare()).and_then(|()| command()) else {
        return ExitCode::SUCCESS;
    };
    complain(&format!("error: {}", error.to_string().replace('\n', "\n       ")));
    match error {
        Error::Usage(_) => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Args;

    /// The words of a shell line; quotes are double ones.
    fn words(line: &str) -> Vec<String> {
        let quoted = line.split('"').enumerate();
        let parts =
            quoted.flat_map(|(i, part)| if i % 2 == 1 { vec![part] } else { part.split_whitespace().collect() });
        parts.map(str::to_string).collect()
    }

    /// Every command shows an example in its help, and every example is one that the command takes.
    #[test]
    fn examples_are_true() {
        for command in [
            train::TrainArgs::augment_args(clap::Command::new("train")),
            inspect::InspectArgs::augment_args(clap::Command::new("inspect")),
            generate::GenerateArgs::augment_args(clap::Command::new("generate")),
            probe::ProbeArgs::augment_args(clap::Command::new("probe")),
            export::ExportArgs::augment_args(clap::Command::new("export")),
            config::ConfigArgs::augment_args(clap::Command::new("config")),
            prepare::ScenesArgs::augment_args(clap::Command::new("prepare scenes")),
            prepare::LabelsArgs::augment_args(clap::Command::new("prepare labels")),
            prepare::CacheArgs::augment_args(clap::Command::new("prepare cache")),
            analyze::AnalyzeArgs::augment_args(clap::Command::new("analyze")),
            evaluate::segmentation::SegmentationArgs::augment_args(clap::Command::new("evaluate segmentation")),
            evaluate::unsupervised::UnsupervisedArgs::augment_args(clap::Command::new("evaluate unsupervised")),
            evaluate::referring::ReferringArgs::augment_args(clap::Command::new("evaluate referring")),
            evaluate::generation::GenerationArgs::augment_args(clap::Command::new("evaluate generation")),
            evaluate::clip_score::ClipScoreArgs::augment_args(clap::Command::new("evaluate clip-score")),
            evaluate::fid::FidArgs::augment_args(clap::Command::new("evaluate fid")),
        ] {
            let help = command.get_after_help().expect("an example").to_string().replace("\\\n", " ");
            let examples: Vec<&str> = help.lines().skip_while(|line| !line.starts_with("Example")).skip(1).collect();
            assert!(!examples.is_empty(), "{help}");
            for example in examples {
                let words = words(example.trim().trim_start_matches("seg4diff "));
                assert!(words.join(" ").starts_with(command.get_name()));
                let line = ["seg4diff".to_string()].into_iter().chain(words);
                Cli::try_parse_from(line).unwrap_or_else(|e| panic!("{example}: {e}"));
            }
        }
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
