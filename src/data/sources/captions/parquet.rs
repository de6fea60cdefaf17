//! Captions in two columns of a Parquet file.
use super::columns::{Columns, Insert};
use super::parquet_bounds;
use crate::system::limits::PARQUET_COLUMN;
use ::parquet::{errors::ParquetError, file::reader::FileReader, file::reader::SerializedFileReader};
use ::parquet::{record::Field, schema::types::Type};
use std::{fs::File, sync::Arc};

/// Calls `insert` for every row in which neither column is null.
pub fn read(file: File, columns: Columns, insert: &mut Insert) -> Result<(), String> {
    let problem = |problem: ParquetError| format!("no readable Parquet file: {problem}");
    parquet_bounds::check_footer(&file)?;
    let pages = file.try_clone().map_err(|problem| problem.to_string())?;
    let reader = SerializedFileReader::new(file).map_err(problem)?;
    let schema = reader.metadata().file_metadata().schema();
    let column = |name: &str| {
        let found = schema.get_fields().iter().find(|field| field.name() == name).cloned();
        found.ok_or_else(|| {
            let names: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
            format!("there is no column `{name}`, only: {}", names.join(", "))
        })
    };
    let fields: Vec<Arc<Type>> = vec![column(columns.key)?, column(columns.caption)?];
    for group in reader.metadata().row_groups() {
        let read = |path: &[String]| path.first().is_some_and(|name| name == columns.key || name == columns.caption);
        for column in group.columns().iter().filter(|column| read(column.column_path().parts())) {
            PARQUET_COLUMN.check(u64::try_from(column.uncompressed_size()).map_err(|problem| problem.to_string())?)?;
            let (start, length) = column.byte_range();
            parquet_bounds::check_pages(&pages, start, length)?;
        }
    }
    let projection = Type::group_type_builder(schema.name()).with_fields(fields).build().map_err(problem)?;
    for (number, row) in reader.get_row_iter(Some(projection)).map_err(problem)?.enumerate() {
        let row = row.map_err(problem)?;
        let text = |name: &str| {
            let field = row.get_column_iter().find(|(column, _)| *column == name).map(|(_, field)| field);
            self::text(field.unwrap_or(&Field::Null))
                .map_err(|()| format!("row {}, column `{name}` is neither text nor a whole number", number + 1))
        };
        if let (Some(key), Some(caption)) = (text(columns.key)?, text(columns.caption)?) {
            insert(&key, &caption)?;
        }
    }
    Ok(())
}

/// Text or a whole number as text; `None` for null.
fn text(field: &Field) -> Result<Option<String>, ()> {
    Ok(Some(match field {
        Field::Null => return Ok(None),
        Field::Str(text) => text.clone(),
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).map_err(|_| ())?.to_owned(),
        Field::Byte(_) | Field::Short(_) | Field::Int(_) | Field::Long(_) => field.to_string(),
        Field::UByte(_) | Field::UShort(_) | Field::UInt(_) | Field::ULong(_) => field.to_string(),
        _ => return Err(()),
    }))
}
