//! A cache of latents and text embeddings changes no bit of a run, and entries are used only for their own inputs.
mod model_folder;
mod outcome;
mod smoke_run;

use image::RgbImage;
use outcome::Outcome;
use seg4diff::demo::{self, SceneOptions, Split};
use smoke_run::{Run, read, run as run_to_end};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// With four images a step, more than one epoch of the smoke data's 36 images.
const STEPS: u64 = 12;
const SETTINGS: &[&str] = &[
    "train.steps=12",
    "train.batch=2",
    "train.accumulate=2",
    "checkpoint.every=3",
    "checkpoint.keep=0",
    "data.resolution=64",
    "data.caption_dropout=0.2",
    "data.flip=true",
];

/// `prepare cache` for the smoke config with these settings.
fn prepare(folder: &Path, settings: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("RUST_LOG");
    command.args(["prepare", "cache", "--config", "configs/smoke.toml", "--out"]).arg(folder);
    for setting in settings {
        command.args(["--set", setting]);
    }
    command
}

/// The command's stdout.
fn fill(folder: &Path, settings: &[&str]) -> String {
    let (output, said) = run_to_end(&mut prepare(folder, settings));
    assert!(output.status.success(), "{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs the command, which must fail with one error, and returns it.
fn refused(command: &mut Command) -> String {
    let (output, said) = run_to_end(command);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{said}");
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
    said[said.find("error: ").unwrap_or_default()..].to_string()
}

fn cache_setting(folder: &Path) -> String {
    format!("data.cache={}", folder.display())
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    names(folder).into_iter().map(|name| (name.clone(), read(folder.join(name)))).collect()
}

/// Names in the folder; files may come and go while a command is writing.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("folder");
    entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect()
}

/// The smoke data, unpacked so that a test can change it.
struct Data {
    folder: tempfile::TempDir,
}

impl Data {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let smoke = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/smoke");
        for entry in std::fs::read_dir(&smoke).expect("folder") {
            let path = entry.expect("entry").path();
            if path.extension().is_some_and(|extension| extension == "tar") {
                let tar = std::fs::File::open(path).expect("tar");
                tar::Archive::new(tar).unpack(folder.path().join("images")).expect("unpack");
            }
        }
        std::fs::copy(smoke.join("captions.json"), folder.path().join("captions.json")).expect("copy");
        Self { folder }
    }

    fn settings(&self) -> Vec<String> {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        vec![format!("data.source=[{:?}]", path("images")), format!("data.captions={}", path("captions.json"))]
    }

    /// The image files, in order.
    fn images(&self) -> Vec<PathBuf> {
        let mut images = vec![];
        let mut folders = vec![self.folder.path().join("images")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("folder") {
                let path = entry.expect("entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "jpg" || extension == "png") {
                    images.push(path);
                }
            }
        }
        images.sort();
        assert_eq!(images.len(), 36);
        images
    }
}

fn strs(settings: &[String]) -> Vec<&str> {
    settings.iter().map(String::as_str).collect()
}

/// Runs with and without a cache are bit-equal, with any number of workers, and resumed with and without.
#[test]
fn a_cache_changes_no_bit() {
    let folder = tempfile::tempdir().expect("folder");
    let said = fill(folder.path(), SETTINGS);
    assert!(said.contains("samples: 36, broken ones among them: 0"), "{said}");
    assert!(said.contains("latents: 72 ") && said.contains("72 of them new"), "{said}");
    let cache = cache_setting(folder.path());

    let plain = Run::new(SETTINGS);
    let said = plain.finish(&[]);
    assert!(!said.contains("are not loaded"), "{said}");
    let expected = Outcome::of(&plain, STEPS);
    for workers in ["data.workers=1", "data.workers=3"] {
        let run = Run::new(&[SETTINGS, &[&cache, workers]].concat());
        let said = run.finish(&[]);
        assert!(said.contains("72 latents and ") && said.contains("text encoders are not loaded"), "{said}");
        expected.check(&Outcome::of(&run, STEPS), workers);

        let middle = run.checkpoint(6, "").display().to_string();
        run.finish(&["--resume", &middle]);
        expected.check(&Outcome::of(&run, STEPS), "resumed with the cache");
    }
    let middle = plain.checkpoint(6, "").display().to_string();
    plain.finish(&["--resume", &middle, "--set", &cache]);
    expected.check(&Outcome::of(&plain, STEPS), "resumed with a cache that the run did not have");

    // Filling again computes and changes nothing.
    let before = files(folder.path());
    let said = fill(folder.path(), SETTINGS);
    assert!(said.contains("latents: 72 ") && said.contains(" 0 of them new"), "{said}");
    assert!(files(folder.path()) == before);
}

/// Stretched rectangular photographs; a cache of stretched images is refused for cropped ones.
#[test]
fn a_cache_of_squeezed_images_changes_no_bit() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = [SETTINGS, &["data.crop=stretch"]].concat();
    fill(folder.path(), &settings);
    let cache = cache_setting(folder.path());
    let outcome = |settings: &[&str]| {
        let run = Run::new(settings);
        run.finish(&[]);
        Outcome::of(&run, STEPS)
    };
    let squeezed = outcome(&settings);
    squeezed.check(&outcome(&[&settings[..], &[&cache]].concat()), "squeezed");
    assert!(squeezed != outcome(SETTINGS), "all of smoke's images are squares");
    let said = refused(&mut Run::new(&[SETTINGS, &[&cache]].concat()).train(&[]));
    assert!(said.contains("crop: stretch in the cache, center now"), "{said}");
}

/// Class names as prompts, label maps as masks.
#[test]
fn a_cache_of_labelled_images_changes_no_bit() {
    let folder = tempfile::tempdir().expect("folder");
    let data = folder.path().join("scenes");
    demo::write_missing(&data, 12, SceneOptions { seed: 3, split: Split::Train, size: 64 }, |_| ()).expect("scenes");
    let at = |name: &str| data.join(name).display().to_string();
    let mut settings = vec![
        "data.format=coco".to_string(),
        format!("data.source=[{:?}]", at("images")),
        format!("data.labels={}", at("labels")),
        format!("data.classes={}", at("classes.json")),
        "loss.heads=mean".to_string(),
    ];
    settings.extend(SETTINGS.iter().map(|setting| setting.to_string()));
    let cache = folder.path().join("cache");
    let run = |more: &[&str]| {
        let run = Run::new(&[&strs(&settings)[..], more].concat());
        run.finish(&[]);
        Outcome::of(&run, STEPS)
    };
    let said = fill(&cache, &strs(&settings));
    assert!(said.contains("latents: 24 "), "{said}");
    run(&[]).check(&run(&[&cache_setting(&cache)]), "labelled images");
}

/// Entries follow the content: images that swap names take their latents along.
#[test]
fn names_mean_nothing_to_a_cache() {
    let (data, folder) = (Data::new(), tempfile::tempdir().expect("folder"));
    let settings =
        [strs(&data.settings()), SETTINGS.to_vec()].concat().iter().map(|s| s.to_string()).collect::<Vec<_>>();
    let settings = strs(&settings);
    fill(folder.path(), &settings);
    // Of one size, so that each fits the other's masks.
    let size = |path: &PathBuf| image::image_dimensions(path).expect("image");
    let images = data.images();
    let other = images[1..].iter().find(|path| size(path) == size(&images[0])).expect("an image of that size");
    let (first, second) = (read(&images[0]), read(other));
    assert!(first != second);
    std::fs::write(&images[0], second).expect("write");
    std::fs::write(other, first).expect("write");
    let plain = Run::new(&settings);
    plain.finish(&[]);
    let cached = Run::new(&[&settings[..], &[&cache_setting(folder.path())]].concat());
    cached.finish(&[]);
    Outcome::of(&plain, STEPS).check(&Outcome::of(&cached, STEPS), "images swapped after the cache was filled");
}

/// A turned photograph and one over a background: cached latents are of what training sees, and another background has no
/// entry.
#[test]
fn turned_and_transparent_images_are_cached_as_they_are_seen() {
    let (data, folder) = (Data::new(), tempfile::tempdir().expect("folder"));
    let mut settings = data.settings();
    settings.extend(SETTINGS.iter().map(|setting| setting.to_string()));
    settings.push("data.background=#204060".into());
    let settings = strs(&settings);
    let images = data.images();
    let jpeg = images.iter().find(|image| read(image).starts_with(&[0xff, 0xd8])).expect("a JPEG");
    let (said, plain) = (b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0", read(jpeg));
    let segment = [&[0xff, 0xe1, 0, said.len() as u8 + 2][..], said].concat();
    std::fs::write(jpeg, [&plain[..2], &segment, &plain[2..]].concat()).expect("write");
    let other = images.iter().find(|image| *image != jpeg).expect("another image");
    let mut pixels = image::open(other).expect("image").into_rgba8();
    pixels.pixels_mut().for_each(|pixel| pixel.0[3] = pixel.0[0]);
    pixels.save_with_format(other, image::ImageFormat::Png).expect("save");

    fill(folder.path(), &settings);
    let cache = cache_setting(folder.path());
    let (plain, cached) = (Run::new(&settings), Run::new(&[&settings[..], &[&cache]].concat()));
    plain.finish(&[]);
    cached.finish(&[]);
    Outcome::of(&plain, STEPS).check(&Outcome::of(&cached, STEPS), "turned and transparent images");
    let said = refused(&mut Run::new(&[&settings[..], &[&cache, "data.background=white"]].concat()).train(&[]));
    assert!(said.contains("lacks the latents of this image"), "{said}");
}

/// A changed image or caption has no entry: training says which and what to do, and that helps. Broken images are
/// skipped with and without a cache.
#[test]
fn what_changed_is_named_and_filled_in() {
    let (data, folder) = (Data::new(), tempfile::tempdir().expect("folder"));
    let mut settings = data.settings();
    settings.extend(SETTINGS.iter().map(|setting| setting.to_string()));
    settings.push("data.max_broken=0.2".into());
    let settings = strs(&settings);
    let images = data.images();
    let broken = read(&images[3]);
    std::fs::write(&images[3], &broken[..broken.len() / 2]).expect("write");
    let said = fill(folder.path(), &settings);
    assert!(said.contains("samples: 36, broken ones among them: 1"), "{said}");
    let cache = cache_setting(folder.path());
    let with_cache = [&settings[..], &[&cache]].concat();

    let same_as_plain = |what: &str| {
        let (plain, cached) = (Run::new(&settings), Run::new(&with_cache));
        plain.finish(&[]);
        cached.finish(&[]);
        let plain = Outcome::of(&plain, STEPS);
        assert_eq!(plain.state["counters"]["broken"].as_u64(), Some(2), "{what}");
        plain.check(&Outcome::of(&cached, STEPS), what);
    };
    same_as_plain("a broken image");

    let mut pixels = image::open(&images[5]).expect("image").into_rgb8();
    let changed: &mut RgbImage = &mut pixels;
    changed.put_pixel(9, 9, image::Rgb([255, 0, 255]));
    changed.save_with_format(&images[5], image::ImageFormat::Png).expect("save");
    let run = Run::new(&with_cache);
    let said = refused(&mut run.train(&[]));
    let name = images[5].display().to_string();
    assert!(said.contains(&name) && said.contains("lacks the latents of this image"), "{said}");
    // The error names the command that helps.
    let command = said.lines().last().unwrap_or_default().trim();
    let arguments: Vec<&str> = command.strip_prefix("seg4diff ").expect(command).split(' ').collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    let (output, said) = run_to_end(command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments));
    assert!(output.status.success(), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains(", 2 of them new"), "{output:?}");
    same_as_plain("an image changed");

    let captions = data.folder.path().join("captions.json");
    let text = String::from_utf8(read(&captions)).expect("text");
    let mut all: BTreeMap<String, String> = serde_json::from_str(&text).expect("captions");
    for caption in all.values_mut() {
        *caption = format!("Look: {caption}");
    }
    std::fs::write(&captions, serde_json::to_string(&all).expect("JSON")).expect("write");
    let said = refused(&mut Run::new(&with_cache).train(&[]));
    assert!(said.contains("lacks the text embedding of \"Look: ") && said.contains("prepare cache"), "{said}");
    fill(folder.path(), &settings);
    same_as_plain("captions changed");
}

/// A cache of another autoencoder, text encoder or resolution is refused before training, and the error names it.
#[test]
fn other_models_and_settings_are_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let cache = folder.path().join("cache");
    let nothing = refused(&mut Run::new(&[SETTINGS, &[&cache_setting(folder.path())]].concat()).train(&[]));
    assert!(nothing.contains("holds no whole cache") && nothing.contains("seg4diff prepare cache"), "{nothing}");
    fill(&cache, SETTINGS);
    let setting = cache_setting(&cache);
    let refuse = |more: &[&str], parts: &[&str]| {
        let settings = [SETTINGS, more].concat();
        for said in [
            refused(&mut Run::new(&[&settings[..], &[&setting]].concat()).train(&[])),
            refused(&mut prepare(&cache, &settings)),
        ] {
            assert!(parts.iter().all(|part| said.contains(part)), "{parts:?} in {said}");
        }
    };
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints/smoke-base");
    for (part, file, fact) in [
        ("vae", "diffusion_pytorch_model.safetensors", "latents-000000.safetensors: the cache is of another model"),
        ("text_encoder_2", "model.safetensors", "clip_g: "),
    ] {
        let model = folder.path().join(part);
        model_folder::copy(&base, &model);
        model_folder::edit_tensors(&model.join(part).join(file), |tensors| {
            for tensor in tensors.values_mut() {
                *tensor = (&*tensor * 1.01).expect("tensor");
            }
        });
        refuse(&[&format!("model.path={}", model.display())], &[fact, "in the cache, "]);
    }
    let model = folder.path().join("tokenizer");
    model_folder::copy(&base, &model);
    let special = model.join("tokenizer/tokenizer_config.json");
    let text = std::fs::read_to_string(&special).unwrap_or_else(|_| "{}".into());
    std::fs::write(&special, text + "\n").expect("write");
    refuse(&[&format!("model.path={}", model.display())], &["clip_l: "]);
    refuse(&["data.resolution=128"], &["resolution: 64 in the cache, 128 now"]);
    refuse(&["model.max_sequence_length=9"], &["tokens: 154 of width 64 in the cache, 86 of width 64 now"]);
    refuse(&["model.dtype=bf16"], &["weights: f32 in the cache, bf16 now"]);
    refuse(&["data.crop=random"], &["data.c", "a random crop is another picture in every epoch"]);
    let no_folder = Command::new(env!("CARGO_BIN_EXE_seg4diff"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["prepare", "cache", "--config", "configs/smoke.toml"])
        .output()
        .expect("seg4diff");
    assert_eq!(no_folder.status.code(), Some(2));
}

/// `prepare cache`, killed any number of times, ends with the bytes of an undisturbed run.
#[test]
fn a_killed_command_goes_on() {
    // 64 KiB an entry, so five shards of latents, and one of text.
    const SETTINGS: &[&str] = &["data.resolution=256"];
    let start = |folder: &Path| {
        let mut command = prepare(folder, SETTINGS);
        command.args(["--shard-size", "1"]).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let whole = tempfile::tempdir().expect("folder");
    assert!(start(whole.path()).status().expect("seg4diff").success());
    let expected = files(whole.path());
    assert_eq!(expected.len(), 6, "{:?}", expected.keys());

    let folder = tempfile::tempdir().expect("folder");
    let shards = || names(folder.path()).iter().filter(|name| name.ends_with("safetensors")).count();
    let mut seen = vec![];
    for wanted in [0, 1, 2, 4] {
        let mut child = start(folder.path()).spawn().expect("seg4diff");
        let deadline = Instant::now() + Duration::from_secs(120);
        while shards() < wanted && child.try_wait().expect("status").is_none() {
            assert!(Instant::now() < deadline, "no shard {wanted}");
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().expect("kill");
        child.wait().expect("wait");
        seen.push(shards());
    }
    assert!(seen.iter().any(|count| (1..expected.len() - 1).contains(count)), "killed too late: {seen:?}");
    // What a kill during a write leaves.
    std::fs::write(folder.path().join(".writing-abc"), "half").expect("write");
    assert!(start(folder.path()).status().expect("seg4diff").success());
    let found = files(folder.path());
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert!(found == expected, "other bytes");
}

/// A damaged shard is one error that names it; once it is removed, the command computes its entries again.
#[test]
fn a_damaged_shard_is_named_and_made_again() {
    let folder = tempfile::tempdir().expect("folder");
    fill(folder.path(), SETTINGS);
    let shard = folder.path().join("latents-000000.safetensors");
    let sound = read(&shard);
    let run = || Run::new(&[SETTINGS, &[&cache_setting(folder.path())]].concat());
    let mut changed = sound.clone();
    // In the values: of 72 entries of 4 KiB, and 288 bytes of checksums at the end of the file.
    let data = sound.len() - 72 * 4096 - 288;
    changed[data..].iter_mut().step_by(500).for_each(|byte| *byte ^= 0x40);
    for (bytes, part) in
        [(&changed[..], "does not have its checksum"), (&sound[..sound.len() / 2], "cut short or damaged")]
    {
        std::fs::write(&shard, bytes).expect("write");
        let said = refused(&mut run().train(&[]));
        assert!(said.contains("latents-000000.safetensors") && said.contains(part), "{said}");
    }
    std::fs::remove_file(&shard).expect("remove");
    let said = fill(folder.path(), SETTINGS);
    assert!(said.contains("latents: 72 "), "{said}");
    assert!(read(&shard) == sound);
}

/// With `[eval]`, which draws and segments images, the encoders are loaded and nothing else changes.
#[test]
fn measuring_needs_the_encoders() {
    let folder = tempfile::tempdir().expect("folder");
    let data = folder.path().join("scenes");
    demo::write_missing(&data, 4, SceneOptions { seed: 3, split: Split::Val, size: 64 }, |_| ()).expect("scenes");
    let at = |name: &str| data.join(name).display().to_string();
    let cache = folder.path().join("cache");
    fill(&cache, SETTINGS);
    let eval = [
        format!("eval.images={}", at("images")),
        format!("eval.labels={}", at("labels")),
        format!("eval.classes={}", at("classes.json")),
        "eval.every=6".to_string(),
        "eval.every_images=2".to_string(),
        "eval.before=false".to_string(),
    ];
    let run = |more: &[&str]| {
        let run = Run::new(&[SETTINGS, &strs(&eval), more].concat());
        let said = run.finish(&[]);
        (Outcome::of(&run, STEPS), said)
    };
    let (plain, (cached, said)) = (run(&[]).0, run(&[&cache_setting(&cache)]));
    assert!(said.contains("are loaded for [eval] alone"), "{said}");
    plain.check(&cached, "with validations");
}
