//! `seg4diff COMMAND …`
use seg4diff::allocator::Allocator;
use seg4diff::commands::{Cli, finish};
use seg4diff::terminal::arguments;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> std::process::ExitCode {
    match arguments::<Cli>() {
        Ok(cli) => finish(|| cli.command.run()),
        Err(status) => status,
    }
}
