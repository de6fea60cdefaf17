//! `probe` on a picture and on a folder of pictures.
use seg4diff::model::weights::read_all;
use seg4diff::report::heatmap::{overlay, sheet};
use seg4diff::sample::image::read_rgb8;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Runs `probe` with these flags in `work`; returns its status and messages.
fn probe(work: &Path, flags: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.args(["probe", "--size", "64", "--device", "cpu"]).args(flags);
    let output = command.arg("--model").arg(root("checkpoints/smoke-base")).current_dir(work).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), said)
}

fn work() -> tempfile::TempDir {
    let work = tempfile::tempdir().unwrap();
    let images = root("tests/fixtures/segmentation/images");
    std::fs::create_dir_all(work.path().join("in/b")).unwrap();
    for name in ["wide.jpg", "b/street.png"] {
        std::fs::copy(images.join(name), work.path().join("in").join(name)).unwrap();
    }
    work
}

#[test]
fn a_folder_of_pictures_gets_a_sheet_each() {
    let work = work();
    let at = |name: &str| work.path().join(name);
    let (status, said) =
        probe(work.path(), &["--images", "in", "--prompt", "red circle", "--layer", "2,1", "--out", "o"]);
    assert_eq!(status, Some(0), "{said}");
    for key in ["wide", "b/street"] {
        let picture = read_rgb8(&at(&format!("in/{key}.{}", if key == "wide" { "jpg" } else { "png" }))).unwrap();
        let overlays =
            ["01-red", "02-circle"].map(|word| read_rgb8(&at(&format!("o/{key}/overlay-{word}.png"))).unwrap());
        // Over the picture in its own shape.
        assert!(overlays.iter().all(|overlay| overlay.dimensions() == picture.dimensions()));
        let wanted = sheet([&picture, &overlays[0], &overlays[1]]);
        assert_eq!(wanted.dimensions(), (2 * 262 + 6, 2 * 262 + 6));
        assert_eq!(read_rgb8(&at(&format!("o/{key}.png"))).unwrap(), wanted, "{key}");
    }
    // Equal to the map of the single picture, which is also written as numbers.
    let alone = ["--image", "in/b/street.png", "--prompt", "red circle", "--layer", "1,2", "--out", "one"];
    let (status, said) = probe(work.path(), &alone);
    assert_eq!(status, Some(0), "{said}");
    let maps = read_all(&at("one/attention.safetensors")).unwrap();
    assert_eq!(maps["logits"].dims(), [2, 77, 4, 4]);
    let difference = (&maps["maps"] - &maps["probability"]).unwrap().abs().unwrap().max_all().unwrap();
    assert_eq!((maps["maps"].dims(), difference.to_scalar::<f32>().unwrap()), (&[77, 4, 4][..], 0.0));
    let picture = read_rgb8(&at("in/b/street.png")).unwrap();
    let spans = [(1usize, "01-red"), (2, "02-circle")];
    let (status, said) =
        probe(work.path(), &["--image", "in/b/street.png", "--prompt", "red", "--layer", "1", "--out", "x"]);
    assert_eq!(status, Some(0), "{said}");
    assert_ne!(
        read_all(&at("x/attention.safetensors")).unwrap()["maps"].to_vec3::<f32>().unwrap(),
        maps["maps"].to_vec3::<f32>().unwrap()
    );
    // Words can have several tokens; the sheet's overlays are of those that have any.
    for (_, word) in spans {
        let found = read_rgb8(&at(&format!("o/b/street/overlay-{word}.png"))).unwrap();
        let made = (1..76).flat_map(|first| (1..=4).map(move |count| (first, count))).any(|(first, count)| {
            first + count <= 77
                && overlay(&picture, &maps["maps"].narrow(0, first, count).unwrap().mean(0).unwrap()).unwrap() == found
        });
        assert!(made, "{word}");
    }
}

#[test]
fn captions_are_the_prompts_where_they_are_given() {
    let work = work();
    let at = |name: &str| work.path().join(name);
    let flags = ["--images", "in", "--captions", "c.json", "--layer", "1", "--heads", "max", "--out", "o"];
    std::fs::write(at("c.json"), r#"{"wide": "a red bar", "b/street": "blue"}"#).unwrap();
    let (status, said) = probe(work.path(), &flags);
    assert_eq!(status, Some(0), "{said}");
    assert!(at("o/wide/overlay-03-bar.png").is_file() && at("o/b/street/overlay-01-blue.png").is_file());
    assert!(!at("o/b/street/overlay-02-red.png").exists() && !at("o/wide/attention.safetensors").exists());
    // Before any picture is read.
    std::fs::write(at("c.json"), r#"{"b/street": "blue"}"#).unwrap();
    let (status, said) = probe(work.path(), &flags);
    assert!(status == Some(1) && said.contains("c.json: has no caption of in/wide.jpg"), "{said}");
}

#[test]
fn what_does_not_go_together_is_wrong_usage() {
    let work = work();
    std::fs::create_dir(work.path().join("empty")).unwrap();
    let common = ["--layer", "1", "--out", "o"];
    for (flags, status, problem) in [
        (&["--image", "in/wide.jpg"][..], 2, "--prompt"),
        (&["--prompt", "a"], 2, "--image"),
        (&["--image", "in/wide.jpg", "--images", "in", "--prompt", "a"], 2, "cannot be used with"),
        (&["--image", "in/wide.jpg", "--captions", "c.json"], 2, "cannot be used with"),
        (&["--images", "in", "--captions", "c.json", "--prompt", "a"], 2, "cannot be used with"),
        (&["--images", "empty", "--prompt", "a"], 1, "empty: holds no image (*.jpg, *.jpeg, "),
        (&["--images", "gone", "--prompt", "a"], 1, "gone"),
    ] {
        let (found, said) = probe(work.path(), &[flags, &common].concat());
        assert!(found == Some(status) && said.contains(problem), "{flags:?}: {found:?} {said}");
    }
}
