//! Through the program: what `--check` says, it says before any step.
use crate::world::{mask, photograph, write};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Status and what was said of `train` on a config with these lines in `[data]`, with `masks` or without.
fn train(folder: &Path, data: &str, masks: bool, arguments: &[&str]) -> (bool, String) {
    let weight = if masks { 1.0 } else { 0.0 };
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/checkpoints/smoke-base");
    let config = format!(
        "device = \"cpu\"\noutput = \"out\"\n[model]\npath = \"{model}\"\nexpert_layer = 1\n[data]\nresolution = 64\n{data}\n\
         [loss]\nfocal_weight = {weight:.1}\ndice_weight = {weight:.1}\n[train]\nsteps = 2\nbatch = 1\naccumulate = 1\n\
         [optim]\nwarmup_steps = 1\n"
    );
    fs::write(folder.join("c.toml"), config).expect("config");
    let mut command = Command::new(env!("CARGO_BIN_EXE_train"));
    command.args(["--config", "c.toml"]).args(arguments).current_dir(folder).env("NO_COLOR", "1");
    let output = command.output().expect("train");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn a_windows_path_in_double_quotes_gets_a_hint() {
    let folder = tempfile::tempdir().expect("folder");
    for source in [r#"["C:\data"]"#, r#"["D:\users\me"]"#, r#"["x/a", "\\server\share"]"#] {
        let (is_right, said) =
            train(folder.path(), &format!("format = \"folder\"\nsource = {source}"), false, &["--check"]);
        assert!(!is_right && said.contains("c.toml") && said.contains("single quotes, as in 'C:\\data'"), "{said}");
    }
    // In single quotes it is a path that is not there.
    let (is_right, said) = train(folder.path(), "format = \"folder\"\nsource = ['C:\\data']", false, &["--check"]);
    assert!(!is_right && said.contains("C:\\data") && !said.contains("single quotes"), "{said}");
}

#[test]
fn check_refuses_what_the_run_would() {
    let folder = tempfile::tempdir().expect("folder");
    write(folder.path(), "d/a.jpg d/a.txt d/b.jpg d/b.txt e/a.jpg e/a.txt f/a.jpg f/a.txt");
    fs::write(folder.path().join("d/a.png"), mask()).expect("mask");
    fs::write(folder.path().join("d/b.png"), b"no picture").expect("mask");
    fs::write(folder.path().join("e/a.txt"), b"caf\xe9").expect("caption");
    fs::write(folder.path().join("f/a.jpg"), "version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        .expect("pointer");
    fs::create_dir(folder.path().join("g")).expect("folder");
    fs::write(folder.path().join("g/s.tar"), b"<!DOCTYPE html>404").expect("page");
    for (source, masks, problem) in [
        ("d", true, "1 of 2 samples are broken, more than data.max_broken = 0.01 allows; for example d/b.jpg: d/b.png"),
        ("e", false, "e/a.jpg: the caption: the text is no UTF-8 at byte 3"),
        ("f", false, "git lfs pull"),
        ("g", false, "the file is a web page"),
    ] {
        for arguments in [&["--check"][..], &[]] {
            let data = format!("format = \"folder\"\nsource = [\"{source}\"]");
            let (is_right, said) = train(folder.path(), &data, masks, arguments);
            assert!(!is_right && said.contains(problem), "{source} {arguments:?}\n{said}");
        }
    }
}

#[test]
fn check_names_the_broken_samples_that_a_run_passes_over() {
    let folder = tempfile::tempdir().expect("folder");
    write(folder.path(), "d/a.jpg d/a.txt d/b.jpg d/b.txt");
    fs::write(folder.path().join("d/b.txt"), b"caf\xe9").expect("caption");
    let data = "format = \"folder\"\nsource = [\"d\"]\nmax_broken = 0.5";
    let (is_right, said) = train(folder.path(), data, false, &["--check"]);
    assert!(
        is_right && said.contains("1 of the first 2 samples cannot be used, such as d/b.jpg: the caption:"),
        "{said}"
    );
}

#[test]
fn sources_are_folders_and_shards() {
    let folder = tempfile::tempdir().expect("folder");
    write(folder.path(), "d/a.jpg d/a.txt d/b.heic d/metadata.csv==x d/c.parquet==x");
    for (source, problem) in [
        ("d/*.jpg", "d/a.jpg is a picture: name the folder that it is in"),
        ("d/b.heic", "d/b.heic is a picture"),
        ("d/metadata.csv", "captions belong into data.captions"),
        ("d/c.parquet", "d/c.parquet is neither a folder nor a .tar, .tar.gz or .tgz"),
        ("d/{a,x}.jpg", "d/x.jpg"),
    ] {
        let data = format!("format = \"folder\"\nsource = [\"{source}\"]");
        let (is_right, said) = train(folder.path(), &data, false, &["--check"]);
        assert!(!is_right && said.contains("data.source") && said.contains(problem), "{said}");
    }
}

#[test]
fn black_and_white_masks_beside_labels_are_for_the_user_to_tell() {
    let folder = tempfile::tempdir().expect("folder");
    write(folder.path(), "d/a.jpg d/a.txt d/a_mask.png d/b.jpg d/b.txt");
    fs::write(folder.path().join("d/b.jpg"), photograph()).expect("picture");
    fs::write(folder.path().join("d/b.png"), mask()).expect("mask");
    let of = |masks: &str| {
        train(folder.path(), &format!("format = \"folder\"\nsource = [\"d\"]\n{masks}"), true, &["--check"])
    };
    let (is_right, said) = of("");
    assert!(
        !is_right && said.contains("data.masks: d/b.png is black and white, and d/a_mask.png has other levels"),
        "{said}"
    );
    let (is_right, said) = of("masks = \"labels\"");
    assert!(is_right && said.contains("first 2 samples: 2 masks used; 1 are label maps of data.ignore"), "{said}");
}
