//! `train …`: `seg4diff train` under a name of its own.
use clap::Parser;
use seg4diff::commands::{finish, train};

#[derive(Parser)]
#[command(name = "train", version)]
struct Cli {
    #[command(flatten)]
    args: train::TrainArgs,
}

fn main() -> std::process::ExitCode {
    seg4diff::process::prepare();
    let cli = Cli::parse();
    finish(|| train::run(&cli.args))
}
