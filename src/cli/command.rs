//! The commands of `seg4diff`, and how they start and end.
use super::{analyze, config, evaluate, export, generate, inspect, prepare, probe, train};
use crate::distributed::{self, Collective};
use crate::system::error::{Error, Result};
use crate::system::launch::Launch;
use crate::system::{log, process, terminal};
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

impl Command {
    /// Whether several processes share its work.
    fn is_shared(&self) -> bool {
        match self {
            Self::Train(_) | Self::Generate(_) | Self::Analyze(_) | Self::Evaluate(_) => true,
            Self::Prepare(command) => matches!(command, prepare::PrepareCommand::Cache(_)),
            _ => false,
        }
    }
}

impl Cli {
    /// Runs the command, as one of the processes that were launched together.
    ///
    /// # Errors
    /// Those of the command; `Error::Usage` for wrong arguments, and for several processes of a command for one.
    pub fn run(&self, processes: &dyn Collective) -> Result<()> {
        if processes.size() > 1 && !self.command.is_shared() {
            let text = "this command is the work of one process; start it without the launcher";
            return Err(Error::Usage(format!("{} processes: {text}", processes.size())));
        }
        match &self.command {
            Command::Train(args) => train::run(args, processes),
            Command::Inspect(args) => inspect::run(args),
            Command::Generate(args) => generate::run(args, processes),
            Command::Probe(args) => probe::run(args),
            Command::Export(args) => export::run(args),
            Command::Config(args) => config::run(args),
            Command::Analyze(args) => analyze::run(args, processes),
            Command::Evaluate(command) => command.run(processes),
            Command::Prepare(command) => command.run(processes),
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
    fn run(&self, processes: &dyn Collective) -> Result<()> {
        match self {
            Self::Segmentation(args) => evaluate::segmentation::run(args, processes),
            Self::Unsupervised(args) => evaluate::unsupervised::run(args, processes),
            Self::Referring(args) => evaluate::referring::run(args, processes),
            Self::Generation(args) => evaluate::generation::run(args, processes),
            Self::Fid(args) => evaluate::fid::run(args, processes),
            Self::ClipScore(args) => evaluate::clip_score::run(args, processes),
        }
    }
}

/// Reads the program's arguments, starts logging, threads and what connects this process with others that it was launched
/// with, runs a command, prints its error if it fails, and returns the exit status. Of several processes, that of rank 0
/// prints.
pub fn run<T: Parser>(command: impl FnOnce(&T, &dyn Collective) -> Result<()>) -> ExitCode {
    let arguments = match terminal::arguments() {
        Ok(arguments) => arguments,
        Err(status) => return status,
    };
    let Err(error) = start().and_then(|processes| {
        let done = command(&arguments, processes.as_ref()).and_then(|()| processes.close());
        done.inspect_err(|error| processes.abort(error))
    }) else {
        return ExitCode::SUCCESS;
    };
    if !terminal::is_silent() && (Launch::speaks() || !matches!(error, Error::Usage(_))) {
        terminal::complain_of(&error);
    }
    ExitCode::from(error.exit_status())
}

fn start() -> Result<Box<dyn Collective>> {
    let launch = Launch::from_environment()?;
    if launch.is_some_and(|launch| launch.rank > 0) {
        terminal::be_silent();
    }
    log::init()?;
    process::prepare(launch.map_or(1, |launch| launch.local_size))?;
    distributed::open(launch)
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
