//! Everything that is printed for people: on standard error what happens, on standard output what came of it.
//!
//! Nobody reading it is no reason to stop: writing to standard error never fails, and nothing here panics. All text goes
//! through `printable`.
use super::launch::Launch;
use super::printable::{printable, printable_line};
use crate::system::error::{Error, Result};
use clap::Parser;
use console::Term;
use indicatif::TermLike;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Whether this process leaves it to another one to print.
static IS_SILENT: AtomicBool = AtomicBool::new(false);

/// Prints nothing from now on: of processes that work together, that of rank 0 prints.
pub fn be_silent() {
    IS_SILENT.store(true, Ordering::Relaxed);
}

/// Whether another process prints.
pub fn is_silent() -> bool {
    IS_SILENT.load(Ordering::Relaxed)
}

/// Writes a command's result, a line or several, to standard output.
///
/// # Errors
/// It cannot be written; not where the reader has gone away, as `head` does: it has had what it wanted.
pub fn say(text: &str) -> Result<()> {
    if is_silent() {
        return Ok(());
    }
    was_written(writeln!(io::stdout(), "{}", printable(text)))
}

/// Writes a line, or several, to standard output, of what is in files, too: that it cannot be written is no reason to stop.
pub fn mention(text: &str) {
    let _ = say(text);
}

/// Writes a line, or several, to standard error, or nowhere.
pub fn complain(text: &str) {
    // In one piece: of several processes' lines, none is to be within another.
    let _ = io::stderr().write_all(format!("{}\n", printable(text)).as_bytes());
}

/// Writes the error that ends the program to standard error, of a process that is silent otherwise, too.
pub fn complain_of(error: impl Display) {
    complain(&format!("error: {}", error.to_string().replace('\n', "\n       ")));
}

/// What came of writing to standard output.
fn was_written(outcome: io::Result<()>) -> Result<()> {
    match outcome {
        Err(problem) if problem.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Failed(format!("cannot write to standard output: {problem}")))
        }
        _ => Ok(()),
    }
}

/// The program's arguments.
///
/// # Errors
/// They are wrong, or ask for help: it is said, and the program's exit status returned.
pub fn arguments<T: Parser>() -> Result<T, ExitCode> {
    T::try_parse().map_err(|problem| {
        if !Launch::speaks() {
            // Launchers end all processes when the first has ended: the one that speaks is to have said it.
            std::thread::sleep(Duration::from_millis(500));
            return ExitCode::from(problem.exit_code() as u8);
        }
        // What is said quotes arguments: those that are quoted are printable.
        let arguments = std::env::args_os().map(|argument| printable_line(&argument.to_string_lossy()).into_owned());
        let problem = T::try_parse_from(arguments).err().unwrap_or(problem);
        match was_written(problem.print()) {
            Err(unwritten) if !problem.use_stderr() => {
                complain_of(unwritten);
                ExitCode::FAILURE
            }
            _ => ExitCode::from(problem.exit_code() as u8),
        }
    })
}

/// Whether standard error is a terminal that shows colours; where Windows' console has to be asked to, it is.
pub fn shows_colours() -> bool {
    Term::stderr().features().colors_supported()
}

/// The terminal on standard error for progress bars, if there is one. `indicatif` panics where drawing fails.
#[derive(Debug)]
pub struct BarTerminal(Term);

impl BarTerminal {
    /// The terminal on standard error, where that is one.
    pub fn open() -> Option<Self> {
        io::stderr().is_terminal().then(|| Self(Term::stderr()))
    }
}

/// Passes a call on to the terminal, whatever comes of it.
macro_rules! pass_on {
    ($($name:ident($($argument:ident: $kind:ty)?);)*) => {
        $(fn $name(&self $(, $argument: $kind)?) -> io::Result<()> {
            let _ = self.0.$name($($argument)?);
            Ok(())
        })*
    };
}

impl TermLike for BarTerminal {
    fn width(&self) -> u16 {
        self.0.size().1
    }

    fn height(&self) -> u16 {
        self.0.size().0
    }

    pass_on! {
        move_cursor_up(n: usize);
        move_cursor_down(n: usize);
        move_cursor_right(n: usize);
        move_cursor_left(n: usize);
        write_line(text: &str);
        write_str(text: &str);
        clear_line();
        flush();
    }
}
