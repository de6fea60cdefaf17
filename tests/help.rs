//! What `--help` prints is what `tests/fixtures/help` holds, for both programs and every subcommand.
//!
//! `UPDATE_HELP=1 cargo test --release --test help` writes the files anew; the difference is then read in the commit.
use clap::CommandFactory;
use seg4diff::cli::Cli;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const SEG4DIFF: &str = env!("CARGO_BIN_EXE_seg4diff");
const TRAIN: &str = env!("CARGO_BIN_EXE_train");

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/help")
}

/// The words of every command below `command`, itself included: `["evaluate", "fid"]`.
fn commands(command: &clap::Command, words: &[String]) -> Vec<Vec<String>> {
    let below = command.get_subcommands().flat_map(|subcommand| {
        let words = [words, &[subcommand.get_name().to_string()]].concat();
        commands(subcommand, &words)
    });
    [words.to_vec()].into_iter().chain(below).collect()
}

/// What `program WORDS --help` prints, as on Linux.
fn help(program: &str, words: &[String]) -> String {
    let output = Command::new(program).args(words).arg("--help").output().expect("the program runs");
    assert!(output.status.success() && output.stderr.is_empty(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8").replace("\r\n", "\n").replace(".exe", "")
}

/// Name of the file → help.
fn printed() -> BTreeMap<String, String> {
    let of_seg4diff = commands(&Cli::command(), &[]).into_iter().map(|words| {
        let name = [&["seg4diff".to_string()], &words[..]].concat().join("-") + ".txt";
        (name, help(SEG4DIFF, &words))
    });
    of_seg4diff.chain([("train.txt".into(), help(TRAIN, &[]))]).collect()
}

fn stored() -> BTreeMap<String, String> {
    let files = std::fs::read_dir(folder()).expect("tests/fixtures/help");
    let paths = files.map(|entry| entry.expect("entry").path());
    paths
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("text").replace("\r\n", "\n");
            (path.file_name().expect("name").to_string_lossy().into_owned(), text)
        })
        .collect()
}

#[test]
fn help_is_as_stored() {
    let printed = printed();
    if std::env::var_os("UPDATE_HELP").is_some() {
        std::fs::remove_dir_all(folder()).ok();
        std::fs::create_dir_all(folder()).expect("folder");
        for (name, text) in &printed {
            std::fs::write(folder().join(name), text).expect("written");
        }
    }
    let stored = stored();
    let how = "if that is meant, UPDATE_HELP=1 cargo test --release --test help writes tests/fixtures/help anew";
    assert_eq!(printed.keys().collect::<Vec<_>>(), stored.keys().collect::<Vec<_>>(), "other commands: {how}");
    for (name, text) in &printed {
        assert_eq!(text, &stored[name], "{name} is another: {how}");
    }
    assert!(printed.len() >= 17 && printed.values().all(|text| text.contains("Usage: ")), "{:?}", printed.keys());
}
