//! `generate`: the files in its folder, and continuing there.
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

const PROMPTS: [&str; 3] = ["a red circle", "a blue square", "a green triangle"];

fn generate(folder: &Path, prompts: &[&str], more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.args(["generate", "--model", "checkpoints/smoke-base", "--device", "cpu", "--size", "64", "--steps", "2"]);
    command.args(["--guidance", "3", "--out"]).arg(folder);
    for prompt in prompts {
        command.args(["--prompt", prompt]);
    }
    command.args(more).current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("a command that starts")
}

fn drawn(folder: &Path, prompts: &[&str], more: &[&str]) -> String {
    let output = generate(folder, prompts, more);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn refused(folder: &Path, prompts: &[&str], more: &[&str]) -> String {
    let output = generate(folder, prompts, more);
    assert!(!output.status.success());
    String::from_utf8(output.stderr).expect("text")
}

fn read(folder: &Path, name: &str) -> Vec<u8> {
    std::fs::read(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn a_half_done_folder_is_gone_on_with() {
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("images");
    drawn(&out, &PROMPTS, &[]);
    let all: Vec<Vec<u8>> = (0..3).map(|index| read(&out, &format!("{index:06}.png"))).collect();
    let captions: Value = serde_json::from_slice(&read(&out, "captions.json")).expect("JSON");
    assert_eq!((&captions["000000"], &captions["000002"]), (&PROMPTS[0].into(), &PROMPTS[2].into()));

    std::fs::remove_file(out.join("000001.png")).expect("an image");
    let said = drawn(&out, &PROMPTS, &[]);
    assert_eq!(said.matches("was there").count(), 2, "{said}");
    assert!(read(&out, "000001.png") == all[1]);
    // More prompts add images; fewer leave the folder as it is.
    let said = drawn(&out, &[&PROMPTS[..], &["grass"]].concat(), &[]);
    assert_eq!(said.matches("was there").count(), 3, "{said}");
    drawn(&out, &PROMPTS[..1], &[]);
    let captions: Value = serde_json::from_slice(&read(&out, "captions.json")).expect("JSON");
    assert_eq!(captions["000003"], "grass");

    for (more, key) in [(["--seed", "1"], "seed"), (["--guidance", "2"], "guidance"), (["--dtype", "bf16"], "dtype")] {
        let more = if key == "guidance" { vec!["--negative", "x"] } else { more.to_vec() };
        let key = if key == "guidance" { "negative" } else { key };
        let said = refused(&out, &PROMPTS, &more);
        assert!(said.contains(&format!("another {key} (")) && said.contains("name another"), "{said}");
    }
    let said = refused(&out, &["other"], &[]);
    assert!(said.contains("another prompts ("), "{said}");
    assert!(read(&out, "000000.png") == all[0]);
    std::fs::remove_file(out.join("generation.json")).expect("a record");
    let said = refused(&out, &PROMPTS, &[]);
    assert!(said.contains("no generation.json that says how they were drawn"), "{said}");
}

#[test]
fn perturbed_guidance_has_an_effect_and_must_name_a_block() {
    let folder = tempfile::tempdir().expect("folder");
    let image = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        drawn(&out, &PROMPTS[..1], more);
        read(&out, "000000.png")
    };
    let plain = image("plain", &[]);
    assert!(image("off", &["--perturb-layer", "77"]) == plain, "a scale of 0 turns it off");
    let perturbed = image("on", &["--perturb-scale", "4", "--perturb-layer", "1"]);
    assert!(perturbed != plain);
    assert!(image("wide", &["--perturb-scale", "4", "--perturb-layer", "1", "--perturb-sigma", "1"]) != perturbed);
    let said = refused(&folder.path().join("none"), &PROMPTS, &["--perturb-scale", "1", "--perturb-layer", "3"]);
    assert!(said.contains("--perturb-layer 3: the model has 3 blocks"), "{said}");
    assert!(!folder.path().join("none").exists());
}
