//! Files of captions: beside the pictures as the Hugging Face hub has them, or named.
use crate::world::{Case, Right, allow_all, check};
use seg4diff::config::{Allowed, DataConfig};
use std::fs;
use std::path::Path;

fn plain(_: &mut DataConfig, _: &Path) {}

fn named(config: &mut DataConfig, root: &Path) {
    config.captions = Some(root.with_file_name("captions.json"));
}

#[test]
fn metadata_in_a_folder_holds_the_captions() {
    use Right::{Error, Said, Samples};
    check(&[
        Case {
            name: "JSON lines",
            files: r#"a.jpg b.jpg metadata.jsonl=={"file_name":"a.jpg","text":"x"}\n{"text":"y","file_name":"b.jpg"}"#,
            change: plain,
            right: Said("a[x]0 b[y]0", &["2 photographs, 0 masks, 2 captions"]),
        },
        Case {
            name: "a table",
            files: r#"a.jpg b.jpg metadata.csv==file_name,text\na.jpg,x\n./b.jpg,y"#,
            change: plain,
            right: Samples("a[x]0 b[y]0"),
        },
        Case {
            name: "letter case, and columns besides",
            files: r#"a.jpg Metadata.JSONL=={"file_name":"a.jpg","text":"x","width":3,"objects":{"id":[null]}}"#,
            change: plain,
            right: Samples("a[x]0"),
        },
        Case {
            name: "a byte-order mark and CRLF",
            files: "a.jpg metadata.csv==\u{feff}file_name,text\\r\\na.jpg,x\\r\\n",
            change: plain,
            right: Samples("a[x]0"),
        },
        Case {
            name: "in a subfolder, with paths of Windows",
            files: r#"train/in/a.jpg train/metadata.jsonl=={"file_name":"in\\a.jpg","text":"x"}"#,
            change: plain,
            right: Samples("train/in/a[x]0"),
        },
        Case {
            name: "blank lines",
            files: r#"a.jpg metadata.jsonl==\n{"file_name":"a.jpg","text":"x"}\n\n"#,
            change: plain,
            right: Samples("a[x]0"),
        },
        Case {
            name: "a column of another name",
            files: r#"a.jpg metadata.jsonl=={"file_name":"a.jpg","prompt":"x"}"#,
            change: plain,
            right: Error(&["metadata.jsonl: record 1: there is no `text`, only: file_name, prompt"]),
        },
        Case {
            name: "that column named",
            files: r#"a.jpg metadata.jsonl=={"file_name":"a.jpg","prompt":"x"}"#,
            change: |config, _| config.caption_column = "prompt".into(),
            right: Samples("a[x]0"),
        },
        Case {
            name: "other separators",
            files: r#"a.jpg metadata.csv==file_name;text\na.jpg;x"#,
            change: plain,
            right: Error(&["metadata.csv: the header has no column `file_name`", "separated by ';', expected ','"]),
        },
        Case {
            name: "no text",
            files: r#"a.jpg metadata.jsonl=={"file_name":"a.jpg","text":null}"#,
            change: plain,
            right: Error(&["metadata.jsonl: record 1: `text` is neither text nor a whole number"]),
        },
        Case {
            name: "a list in the place of lines",
            files: r#"a.jpg metadata.jsonl==[{"file_name":"a.jpg","text":"x"}]"#,
            change: plain,
            right: Error(&["metadata.jsonl: record 1:", "expected a record"]),
        },
        Case {
            name: "two of them",
            files: r#"a.jpg metadata.jsonl=={"file_name":"a.jpg","text":"x"} metadata.csv==file_name,text\na.jpg,y"#,
            change: plain,
            right: Error(&["metadata.csv", "metadata.jsonl", "both hold captions"]),
        },
        Case {
            name: "one for each of two folders",
            files: r#"x/a.jpg x/metadata.csv==file_name,text\na.jpg,x y/a.jpg y/metadata.csv==file_name,text\na.jpg,y"#,
            change: plain,
            right: Error(&["both hold captions", "[[data.sources]]"]),
        },
        Case {
            name: "its key fits pictures of two folders",
            files: r#"x/a.jpg x/metadata.csv==file_name,text\na.jpg,x y/a.jpg"#,
            change: plain,
            right: Error(&["the caption of `a.jpg` fits", "another image of that name"]),
        },
        Case {
            name: "captions beside the pictures, too",
            files: r#"a.jpg a.txt b.jpg b.txt metadata.jsonl=={"file_name":"a.jpg","text":"x"}\n{"file_name":"b.jpg","text":"y"}"#,
            change: plain,
            right: Error(&["2 caption files beside pictures: a.txt, b.txt;", "metadata.*", "data.captions"]),
        },
        Case {
            name: "the same with the file named",
            files: r#"a.jpg a.txt metadata.jsonl=={"file_name":"a.jpg","text":"x"}"#,
            change: |config, root| config.captions = Some(root.join("metadata.jsonl")),
            right: Said("a[x]0", &["1 caption file beside a picture, not read"]),
        },
        Case {
            name: "a picture that it lacks",
            files: r#"a.jpg b.jpg metadata.jsonl=={"file_name":"a.jpg","text":"x"}"#,
            change: plain,
            right: Error(&["1 photograph without a caption: b.jpg", "captions_missing"]),
        },
        Case {
            name: "the same, accepted: it is left out",
            files: r#"a.jpg b.jpg metadata.jsonl=={"file_name":"a.jpg","text":"x"}"#,
            change: allow_all,
            right: Said("a[x]0", &["1 photograph without a caption: b.jpg"]),
        },
        Case {
            name: "a picture that is not here",
            files: r#"a.jpg metadata.csv==file_name,text\na.jpg,x\ngone.jpg,y"#,
            change: plain,
            right: Said("a[x]0", &["1 caption of a picture that is not here: gone.jpg"]),
        },
        Case {
            name: "a row twice",
            files: r#"a.jpg metadata.csv==file_name,text\na.jpg,x\na.jpg,x"#,
            change: plain,
            right: Samples("a[x]0"),
        },
        Case {
            name: "two rows of one picture",
            files: r#"a.jpg metadata.csv==file_name,text\na.jpg,x\n./a.jpg,y"#,
            change: plain,
            right: Error(&["metadata.csv", "`a.jpg` and `./a.jpg` mean one image", "\"x\" and \"y\""]),
        },
    ]);
}

#[test]
fn files_of_captions_are_matched_by_their_keys() {
    use Right::{Error, Said, Samples};
    check(&[
        Case {
            name: "kohya's metadata: records by key",
            files: r#"x/a.jpg b.jpg ../captions.json=={"x/a":{"tags":"t","caption":"one"},"b.jpg":{"caption":"two"}}"#,
            change: named,
            right: Samples("b[two]0 x/a[one]0"),
        },
        Case {
            name: "records without a caption",
            files: r#"a.jpg ../captions.json=={"a":{"tags":"t"}}"#,
            change: named,
            right: Error(&["captions.json: `a` is neither text nor a record with `caption`"]),
        },
        Case {
            name: "with queries",
            files: r#"a.jpg ../captions.json=={"a.jpg?size=2":"x"}"#,
            change: named,
            right: Error(&["1 photograph without a caption: a.jpg"]),
        },
        Case {
            name: "with queries: the keys are shown",
            files: r#"a.jpg b.jpg ../captions.json=={"a.jpg?size=2":"x","b":"y"}"#,
            change: |config, root| {
                named(config, root);
                config.allow = vec![Allowed::CaptionsMissing];
            },
            right: Said("b[y]0", &["1 caption of a picture that is not here: a.jpg?size=2"]),
        },
        Case {
            name: "with other letter case",
            files: r#"IMG_1.jpg ../captions.json=={"img_1":"x"}"#,
            change: named,
            right: Error(&["1 photograph without a caption: IMG_1.jpg"]),
        },
        Case {
            name: "with dots in the name",
            files: r#"v1.0.jpg v1.5.jpg ../captions.json=={"v1.0":"x","v1.5.jpg":"y"}"#,
            change: named,
            right: Samples("v1.0[x]0 v1.5[y]0"),
        },
        Case {
            name: "several fit",
            files: r#"a.jpg ../captions.json=={"x/data/a":"x","y/data/a":"y"}"#,
            change: named,
            right: Error(&["1 photograph without a caption: a.jpg"]),
        },
        Case {
            name: "a file that is gzip",
            files: "a.jpg",
            change: |config, root| {
                named(config, root);
                fs::write(root.with_file_name("captions.json"), [0x1f, 0x8b, 8, 0, 0]).expect("write");
            },
            right: Error(&["captions.json: the file is compressed by gzip"]),
        },
        Case {
            name: "a spreadsheet",
            files: "a.jpg",
            change: |config, root| {
                named(config, root);
                fs::write(root.with_file_name("captions.json"), b"PK\x03\x04\x14\0").expect("write");
            },
            right: Error(&["captions.json: the file is a zip archive (or a spreadsheet)"]),
        },
        Case {
            name: "a web page",
            files: "a.jpg ../captions.json==<!DOCTYPE",
            change: |config, root| {
                named(config, root);
                fs::write(root.with_file_name("captions.json"), "<!doctype html><title>404").expect("write");
            },
            right: Error(&["captions.json: the file is a web page"]),
        },
    ]);
}
