//! `train …`: `seg4diff train` under a name of its own.
use clap::Parser;
use seg4diff::cli::{finish, train};
use seg4diff::system::allocator::Allocator;
use seg4diff::system::terminal::arguments;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

#[derive(Parser)]
#[command(name = "train", version)]
struct TrainCli {
    #[command(flatten)]
    args: train::TrainArgs,
}

fn main() -> std::process::ExitCode {
    match arguments::<TrainCli>() {
        Ok(cli) => finish(|processes| train::run(&cli.args, processes)),
        Err(status) => status,
    }
}
