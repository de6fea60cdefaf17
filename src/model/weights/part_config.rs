//! What the `config.json` of a part says where it has none beside it.
use super::part::Part;
use super::shapes::Shapes;
use crate::model::families::original::Original;
use crate::model::text::original as text;
use crate::model::vae::original as vae;
use crate::system::error::Result;
use crate::system::json::read_json;
use crate::system::limits::MODEL_JSON;
use serde_json::{Map, Value};
use std::path::Path;

/// What all such models have, over that what the `file` of a folder of configurations says, over that what the `shapes` show.
///
/// # Errors
/// The file cannot be read.
pub(super) fn of(
    part: Part,
    original: Option<&Original>,
    file: Option<&Path>,
    shapes: Option<&Shapes>,
) -> Result<Value> {
    let mut config = usual_config(part, original);
    if let Some(file) = file {
        config.extend(read_json::<Map<String, Value>>(file, MODEL_JSON)?);
    }
    if let Some(shapes) = shapes {
        let head_dim = config.get("attention_head_dim").and_then(Value::as_u64).map(|size| size as usize);
        let sizes = match part {
            Part::Transformer => {
                original.map_or(Value::Null, |original| (original.transformer_sizes)(shapes, head_dim))
            }
            Part::Vae => vae::sizes(shapes),
            Part::Text(kind) => (text::of(kind).sizes)(shapes),
        };
        config.extend(object(sizes));
    }
    Ok(Value::Object(config))
}

/// What a part's `config.json` says in all models of a family.
fn usual_config(part: Part, original: Option<&Original>) -> Map<String, Value> {
    let of_family = |config: fn(&Original) -> Value| object(original.map_or(Value::Null, config));
    match part {
        Part::Transformer => of_family(|original| (original.transformer)()),
        Part::Vae => object(vae::usual()).into_iter().chain(of_family(|original| (original.vae)())).collect(),
        Part::Text(kind) => object((text::of(kind).usual)()),
    }
}

fn object(value: Value) -> Map<String, Value> {
    if let Value::Object(map) = value { map } else { Map::new() }
}
