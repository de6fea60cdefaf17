//! The pages for people are true: commands in them are ones that the program takes, links lead to files and headings.
use clap::Parser;
use seg4diff::cli::Cli;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Paths and texts of `docs/*.md`, of the pages beside `README.md`, and of those in the folders below.
fn pages() -> Vec<(PathBuf, String)> {
    let folders = ["", "docs", "benches", "checkpoints/demo-base", "checkpoints/demo-features", "data/classes"];
    let mut pages = vec![];
    for folder in folders {
        for entry in std::fs::read_dir(root().join(folder)).expect("folder") {
            let path = entry.expect("entry").path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let text = std::fs::read_to_string(&path).expect("text").replace("\r\n", "\n");
                pages.push((path, text));
            }
        }
    }
    assert!(pages.len() > 12, "{}", pages.len());
    pages
}

/// A page's blocks of code in `language` (`inside`), or the text around all blocks of code.
fn parts<'a>(text: &'a str, language: &str, inside: bool) -> Vec<&'a str> {
    let fenced = text.split("```").enumerate();
    let wanted = fenced.filter(|(i, part)| (i % 2 == 1) == inside && (!inside || part.starts_with(language)));
    wanted.map(|(_, part)| part).collect()
}

/// The words of a shell line; quotes are double ones.
fn words(line: &str) -> Vec<String> {
    let quoted = line.split('"').enumerate();
    quoted
        .flat_map(|(i, part)| if i % 2 == 1 { vec![part] } else { part.split_whitespace().collect() })
        .map(str::to_string)
        .collect()
}

/// The arguments of our program in a shell line, if that starts it.
fn arguments(line: &str) -> Option<Vec<String>> {
    let words = words(line.split(" #").next().unwrap_or_default());
    let all: Vec<&str> = words.iter().map(String::as_str).collect();
    let (command, arguments) = match all.as_slice() {
        ["seg4diff", arguments @ ..] => (None, arguments),
        ["train", arguments @ ..] => (Some("train"), arguments),
        ["cargo", "run", cargo @ ..] => {
            let dashes = cargo.iter().position(|word| *word == "--")?;
            ((!cargo[..dashes].contains(&"seg4diff")).then_some("train"), &cargo[dashes + 1..])
        }
        _ => return None,
    };
    Some(["seg4diff"].into_iter().chain(command).chain(arguments.iter().copied()).map(str::to_string).collect())
}

#[test]
fn commands_are_taken() {
    let mut count = 0;
    for (path, text) in pages() {
        for block in parts(&text, "sh\n", true) {
            for line in block.replace("\\\n", " ").lines().filter_map(|line| arguments(line.trim())) {
                Cli::try_parse_from(&line).unwrap_or_else(|e| panic!("{}: {}\n{e}", path.display(), line.join(" ")));
                count += 1;
            }
        }
    }
    assert!(count > 20, "{count} commands");
}

/// A heading's name in links, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut count = 0;
    for (path, text) in pages() {
        let links = parts(&text, "", false).into_iter().flat_map(|part| part.split("](").skip(1));
        for link in links.filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            if link.contains("://") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().expect("folder").join(file) };
            assert!(target.exists(), "{}: {link} is not there", path.display());
            if !heading.is_empty() {
                let page = std::fs::read_to_string(&target).expect("page").replace("\r\n", "\n");
                let around = parts(&page, "", false).concat();
                let headings: Vec<String> = around.lines().filter(|l| l.starts_with('#')).map(anchor).collect();
                assert!(headings.iter().any(|found| found == heading), "{}: {link}: no heading", path.display());
            }
            count += 1;
        }
    }
    assert!(count > 40, "{count} links");
}
