//! Tokens that a tokenizer's files add are those of transformers.
mod folder_copy;

use folder_copy::copy;
use seg4diff::model::text::tokenizer::{CLIP_TOKENS, TextTokenizer};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Deserialize)]
struct Case {
    name: String,
    /// The folder of the pipeline with vocabulary and merges.
    folder: String,
    files: BTreeMap<String, serde_json::Value>,
    /// Ids by text.
    texts: BTreeMap<String, Vec<u32>>,
}

#[test]
fn ids_are_those_of_transformers() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let cases: Vec<Case> =
        serde_json::from_slice(&std::fs::read(fixtures.join("tokens/expected.json")).unwrap()).unwrap();
    assert!(cases.len() > 20);
    let mut problems = vec![];
    for Case { name, folder, files, texts } in cases {
        let work = tempfile::tempdir().unwrap();
        copy(&fixtures.join("pipeline/pipeline").join(&folder), work.path());
        for (file, content) in files {
            std::fs::write(work.path().join(file), content.to_string()).unwrap();
        }
        let is_clip = folder != "tokenizer_3";
        for (text, expected) in texts {
            let found = match is_clip {
                true => {
                    TextTokenizer::open_clip(work.path()).and_then(|tokenizer| tokenizer.encode(&text, CLIP_TOKENS))
                }
                false => {
                    TextTokenizer::open_t5(work.path()).and_then(|tokenizer| tokenizer.encode(&text, expected.len()))
                }
            };
            match found {
                Ok(found) if found == expected => (),
                Ok(found) => {
                    let end = expected.iter().zip(&found).rposition(|(a, b)| a != b).unwrap_or(0) + 1;
                    problems.push(format!("{name}, {text:?}: {:?}, expected {:?}", &found[..end], &expected[..end]));
                }
                Err(problem) => problems.push(format!("{name}, {text:?}: {problem}")),
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn files_that_say_no_tokens_are_errors() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for (file, content) in [
        ("added_tokens.json", r#"{"<s0>": "x"}"#),
        ("added_tokens.json", r#"{"<s0>": -1}"#),
        ("added_tokens.json", "[]"),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": {"x": {"content": "a"}}}"#),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": {"5": 7}}"#),
        ("special_tokens_map.json", r#"{"additional_special_tokens": [3]}"#),
    ] {
        let work = tempfile::tempdir().unwrap();
        copy(&fixtures.join("pipeline/pipeline/tokenizer"), work.path());
        std::fs::write(work.path().join(file), content).unwrap();
        let refused = TextTokenizer::open_clip(work.path()).map(|_| ()).map_err(|problem| problem.to_string());
        assert!(refused.as_ref().is_err_and(|text| text.contains(file)), "{content}: {refused:?}");
    }
}
