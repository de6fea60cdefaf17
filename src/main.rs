//! `seg4diff COMMAND …`
use seg4diff::cli::{Cli, run};
use seg4diff::system::allocator::Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> std::process::ExitCode {
    run(Cli::run)
}
