//! Log lines on stderr, written so that they do not tear a progress bar.
use crate::system::error::{Error, Result};
use crate::system::terminal::{Stderr, printable, shows_colours};
use std::fmt;
use std::io::Write;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};

/// Starts logging: warnings of all crates and the information of this one, or what RUST_LOG says. The hub client logs
/// what it then returns as an error, which is shown anyway.
///
/// # Errors
/// `Error::Usage` if RUST_LOG is not a filter.
pub fn init() -> Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => {
            EnvFilter::try_new(&text).map_err(|e| Error::Usage(format!("RUST_LOG={text}: {e}")))?
        }
        _ => EnvFilter::new("warn,hf_hub=off,seg4diff=info"),
    };
    let logger = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(shows_colours())
        // A line that cannot be written is lost; to report that is what would panic.
        .log_internal_errors(false)
        .fmt_fields(PrintableFields)
        .with_writer(|| AboveBars);
    logger.try_init().map_err(|e| Error::Failed(format!("cannot start logging: {e}")))
}

/// Messages without what steers a terminal. A message's further lines are indented: none looks like another message.
struct PrintableFields;

impl<'w> FormatFields<'w> for PrintableFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut text = String::new();
        DefaultFields::new().format_fields(Writer::new(&mut text), fields)?;
        writer.write_str(&printable(&text).replace('\n', "\n  "))
    }
}

/// Stderr, with the progress bars taken away while a line is written.
struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        super::progress::bars().suspend(|| Stderr.write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
