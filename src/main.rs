//! `seg4diff COMMAND …`
use clap::Parser;
use seg4diff::commands::{Cli, finish};

fn main() -> std::process::ExitCode {
    seg4diff::process::prepare();
    let cli = Cli::parse();
    finish(|| cli.command.run())
}
