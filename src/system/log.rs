//! Logging to stderr that does not disturb progress bars.
use super::error::{Error, Result};
use super::printable::printable;
use super::terminal::{is_silent, shows_colours};
use std::fmt;
use std::io::Write;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};

/// Starts logging with the filter of RUST_LOG, by default warnings of all crates and information of this one; of
/// a process that leaves it to another one to print, nothing. The hub client is silenced, since it also returns as errors
/// whatever it logs.
///
/// # Errors
/// `Error::Usage` if RUST_LOG is not a filter.
pub fn init() -> Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => {
            EnvFilter::try_new(&text).map_err(|e| Error::Usage(format!("RUST_LOG={text}: {e}")))?
        }
        _ if is_silent() => return Ok(()),
        _ => EnvFilter::new("warn,hf_hub=off,rustls_platform_verifier=off,seg4diff=info"),
    };
    let logger = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(shows_colours())
        // A line that cannot be written is dropped: reporting the failure would panic.
        .log_internal_errors(false)
        .fmt_fields(PrintableFields)
        .with_writer(|| AboveBars);
    logger.try_init().map_err(|e| Error::Failed(format!("cannot start logging: {e}")))
}

/// Strips terminal control characters, and indents continuation lines so that they do not look like new messages.
struct PrintableFields;

impl<'w> FormatFields<'w> for PrintableFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut text = String::new();
        DefaultFields::new().format_fields(Writer::new(&mut text), fields)?;
        writer.write_str(&printable(&text).replace('\n', "\n  "))
    }
}

/// Standard error, with the progress bars hidden while a line is written. What cannot be written is lost.
struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = super::progress::bars().suspend(|| std::io::stderr().write_all(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
