//! Captions in a table with a header, its columns separated by commas or tabs.
use super::columns::{Columns, Insert};
use crate::system::limits::RECORD;
use crate::system::patience::Patient;
use crate::system::utf8;
use csv::{ErrorKind, ReaderBuilder, StringRecord};
use std::fs::File;

/// Calls `insert` for every row.
pub fn read(file: Patient<File>, delimiter: u8, columns: Columns, insert: &mut Insert) -> Result<(), String> {
    let (metered, meter) = RECORD.metered(file);
    let text = utf8::without_mark(metered).map_err(|problem| problem.to_string())?;
    let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(text);
    let header = reader.headers().map_err(problem)?.clone();
    let place = |name: &str| {
        let mut places = (0..).zip(&header).filter(|(_, column)| column.trim() == name).map(|(place, _)| place);
        match (places.next(), places.next()) {
            (Some(place), None) => Ok(place),
            (Some(_), Some(_)) => Err(format!("the header has two columns `{name}`")),
            (None, _) => {
                let names: Vec<&str> = header.iter().collect();
                let other = [';', '\t', ','].into_iter().find(|other| names.iter().all(|name| name.contains(*other)));
                let hint = other.map_or_else(String::new, |other| {
                    format!("; its columns seem to be separated by {other:?}, expected {:?}", char::from(delimiter))
                });
                Err(format!("the header has no column `{name}`, only: {}{hint}", names.join(", ")))
            }
        }
    };
    let (key, caption): (usize, usize) = (place(columns.key)?, place(columns.caption)?);
    let mut row = StringRecord::new();
    while reader.read_record(&mut row).map_err(problem)? {
        let cell = |place| row.get(place).unwrap_or_default();
        let number = row.position().map_or(0, csv::Position::record);
        insert(cell(key), cell(caption)).map_err(|problem| format!("record {number}: {problem}"))?;
        meter.reset();
    }
    Ok(())
}

/// The crate's error, its place first.
fn problem(problem: csv::Error) -> String {
    // Lines would be wrong by one where they end in CRLF.
    let number = problem.position().map_or(0, csv::Position::record);
    match problem.kind() {
        ErrorKind::Utf8 { .. } => format!("record {number}: the text is no UTF-8"),
        ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!(
                "record {number}: {len} columns, expected the {expected_len} of the header; quote cells with separators"
            )
        }
        _ => problem.to_string(),
    }
}
