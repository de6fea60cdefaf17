//! `train …`: `seg4diff train` under a name of its own.
use clap::Parser;
use seg4diff::cli::{run, train};
use seg4diff::system::allocator::Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

#[derive(Parser)]
#[command(name = "train", version)]
struct TrainCli {
    #[command(flatten)]
    args: train::TrainArgs,
}

fn main() -> std::process::ExitCode {
    run(|cli: &TrainCli, processes| train::run(&cli.args, processes))
}
