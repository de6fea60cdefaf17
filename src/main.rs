//! `seg4diff COMMAND …`
use seg4diff::cli::{Cli, finish};
use seg4diff::system::allocator::Allocator;
use seg4diff::system::terminal::arguments;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> std::process::ExitCode {
    match arguments::<Cli>() {
        Ok(cli) => finish(|processes| cli.run(processes)),
        Err(status) => status,
    }
}
