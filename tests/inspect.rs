//! `seg4diff inspect`: its page and its sheet show the samples that the loader gives to training.
mod browser;
mod smoke_run;

use image::RgbImage;
use image::imageops::{FilterType, resize};
use seg4diff::config::RunConfig;
use seg4diff::data::{Loader, Sample};
use seg4diff::model::text::PromptTokenizers;
use seg4diff::model::weights::files::ModelFiles;
use seg4diff::sample::image::read_rgb8;
use smoke_run::Run;
use std::path::Path;
use std::process::Command;

/// Sixteen of the smoke data's samples with other flips, windows and dropped captions than the config's.
const SETTINGS: [&str; 5] =
    ["seed=3", "data.crop=random", "data.caption_dropout=0.3", "data.resolution=64", "data.workers=3"];

/// The page that `inspect` writes into `out` with these settings over the config's.
fn inspect(config: &str, settings: &[&str], count: usize, out: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("RUST_LOG");
    command.args(["inspect", "--config", config, "--count", &count.to_string(), "--out"]).arg(out);
    for setting in settings {
        command.args(["--set", setting]);
    }
    let output = command.output().expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("inspect.html") && said.contains("inspect.png"), "{said}");
    std::fs::read_to_string(out.join("inspect.html")).expect("page")
}

fn config(file: &str, settings: &[&str]) -> RunConfig {
    let settings: Vec<String> = settings.iter().map(|setting| setting.to_string()).collect();
    RunConfig::load(Path::new(file), &settings).expect("config")
}

/// The text of a part of a page, without its marks.
fn text(html: &str) -> String {
    let plain = html.split('<').map(|part| part.split_once('>').map_or(part, |(_, text)| text)).collect::<String>();
    plain.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&")
}

/// The figures of a page's samples.
fn figures(page: &str) -> Vec<&str> {
    page.split("<figure class=\"example\">").skip(1).map(|rest| rest.split("</figure>").next().expect("end")).collect()
}

fn first_samples(config: &RunConfig, count: usize) -> Vec<Sample> {
    Loader::new(&config.data, config.seed, None, false)
        .and_then(|mut loader| loader.next_batch(count))
        .expect("samples")
        .samples
}

#[test]
fn samples_are_those_of_the_loader() {
    let folder = tempfile::tempdir().expect("folder");
    let page = inspect("configs/smoke.toml", &SETTINGS, 16, folder.path());
    let config = config("configs/smoke.toml", &SETTINGS);
    let samples = first_samples(&config, 16);
    let figures = figures(&page);
    assert_eq!(figures.len(), 16);
    let dropped = samples.iter().filter(|sample| sample.is_dropped).count();
    assert!((1..12).contains(&dropped), "{dropped}");
    for (number, (figure, sample)) in (1..).zip(figures.iter().zip(&samples)) {
        let shown = text(figure);
        assert!(shown.starts_with(&format!("{number}. {}epoch 0", sample.key)), "{shown}");
        assert!(shown.contains(&sample.prompt), "{shown}");
        assert_eq!(figure.contains("caption dropped"), sample.is_dropped, "{shown}");
        assert_eq!(figure.matches("class=\"chip\"").count(), sample.masks.len(), "{shown}");
        assert_eq!(figure.contains("matched with words while training"), !sample.masks.is_empty());
        assert_eq!(figure.matches("src=\"data:image/").count(), 2);
    }
    // The sheet has each picture, pixel by pixel, thrice as large, and its masks to the right.
    let sheet = read_rgb8(&folder.path().join("inspect.png")).expect("sheet");
    assert_eq!(sheet.dimensions(), (8 * 198 + 6, 4 * 198 + 6));
    for (number, sample) in samples.iter().enumerate() {
        let picture = RgbImage::from_raw(64, 64, sample.image.clone()).expect("picture");
        let (x, y) = (6 + 198 * 2 * (number as u32 % 4), 6 + 198 * (number as u32 / 4));
        let shown = image::imageops::crop_imm(&sheet, x, y, 192, 192).to_image();
        assert!(shown == resize(&picture, 192, 192, FilterType::Nearest), "{}", sample.key);
        let masked = image::imageops::crop_imm(&sheet, x + 198, y, 192, 192).to_image();
        assert!(masked != shown || sample.masks.is_empty());
    }
    let other = tempfile::tempdir().expect("folder");
    assert_eq!(inspect("configs/smoke.toml", &SETTINGS, 16, other.path()), page, "the same bytes each time");
}

/// The page of a run, of a resumed one too, has the figures that `inspect` drew before it.
#[test]
fn the_page_of_a_run_shows_its_first_samples() {
    let folder = tempfile::tempdir().expect("folder");
    let looked_at = inspect("configs/smoke.toml", &SETTINGS, 8, folder.path());
    let run = Run::new(&[&SETTINGS[..], &["train.batch=2", "optim.warmup_steps=9"]].concat());
    for (more, shown) in [(&["--set", "train.steps=2"][..], 4), (&["--resume", "--set", "train.steps=6"], 8)] {
        run.finish(more);
        let page = std::fs::read_to_string(run.path("report.html")).expect("page");
        let data =
            page.split("<section id=\"data\">").nth(1).expect("a section").split("</section>").next().expect("end");
        assert!(figures(data) == figures(&looked_at)[..shown], "{shown}");
    }
}

/// Names of classes stand in their masks' colours, and what the encoder has no room for is struck through and counted.
#[test]
fn words_meet_masks_and_the_last_are_cut() {
    let folder = tempfile::tempdir().expect("folder");
    let data = folder.path().join("data");
    std::fs::create_dir(&data).expect("folder");
    let long = "many words of this prompt are beyond what the encoder has room for ".repeat(9);
    let map =
        image::GrayImage::from_fn(64, 64, |x, y| image::Luma([u8::from(x < 20) + 2 * u8::from(y < 30 && x > 40)]));
    for name in ["a", "b"] {
        let picture = RgbImage::from_fn(64, 64, |x, y| image::Rgb([4 * x as u8, 4 * y as u8, 90]));
        picture.save(data.join(format!("{name}.png"))).expect("picture");
        map.save(data.join(format!("{name}_mask.png"))).expect("masks");
    }
    std::fs::write(data.join("b.txt"), &long).expect("caption");
    std::fs::write(folder.path().join("classes.json"), r#"{"1": "<b>wall & floor", "2": "窓 window"}"#)
        .expect("classes");
    let file = folder.path().join("c.toml");
    let toml = format!(
        "output = {:?}\n[model]\npath = \"checkpoints/smoke-base\"\n[data]\nformat = \"folder\"\nsource = [{:?}]\n\
         classes = {:?}\nresolution = 64\nshuffle_buffer = 1\nflip = false\n",
        folder.path().join("run"),
        data,
        folder.path().join("classes.json")
    );
    std::fs::write(&file, toml).expect("config");
    let out = folder.path().join("look");
    let page = inspect(file.to_str().expect("path"), &[], 32, &out);
    let figures = figures(&page);
    // Each picture once, although more were asked for.
    assert_eq!(figures.len(), 2);
    let config = config(file.to_str().expect("path"), &[]);
    let tokenizers = PromptTokenizers::open(&ModelFiles::open(&config.model.path).expect("model"), &config.model);
    let tokens = |prompt: &str| tokenizers.as_ref().expect("tokenizers").tokens(prompt).expect("tokens").remove(0);

    let [named, captioned] = figures[..] else { panic!("two") };
    let words: Vec<String> = named
        .split("<b class=\"token\"")
        .skip(1)
        .map(|rest| text(&format!("<{}", rest.split("</b>").next().expect("end"))))
        .collect();
    assert_eq!(words.concat(), "<b>wall&floor窓window");
    let prompt = "<b>wall & floor 窓 window";
    assert_eq!(words.len(), tokens(prompt).ranges.len());
    assert!(text(named).contains(prompt) && text(named).contains("<b>wall & floor 31.2 %"), "{}", text(named));
    assert!(!page.contains("<b>wall"), "a name is no mark");

    let found = tokens(&long);
    assert!(found.ranges.len() > 80 && found.limit == 75);
    let struck = captioned.matches("<s class=\"token\">").count();
    assert_eq!(struck, found.ranges.len() - 75);
    assert_eq!(captioned.matches("<span class=\"token\">").count(), 75);
    let cut = text(captioned.split_once("<s class=\"token\">").expect("cut").1);
    let start = found.ranges[75].start;
    assert!(cut.starts_with(long[start..].split(' ').next().expect("a word")), "{cut}");
    let note = format!("has room for 75 tokens, the last {struck} of {} are lost", found.ranges.len());
    assert!(captioned.contains(&note), "{note}");
    assert!(captioned.contains("matched with words while training"));

    if let Some(browser) = browser::find() {
        let seen = browser::open(&browser, &out.join("inspect.html"), 390);
        assert_eq!((seen.console, seen.requests), (vec![], vec![]));
        assert_eq!(seen.dom.matches("<figure").count(), 2);
    }
}

/// Neither weights nor a config of the denoiser are needed.
#[test]
fn tokenizers_are_all_that_is_read_of_the_model() {
    let folder = tempfile::tempdir().expect("folder");
    let base = Path::new("checkpoints/smoke-base");
    for part in ["tokenizer", "tokenizer_2"] {
        std::fs::create_dir(folder.path().join(part)).expect("folder");
        for entry in std::fs::read_dir(base.join(part)).expect("tokenizer") {
            let entry = entry.expect("entry");
            std::fs::copy(entry.path(), folder.path().join(part).join(entry.file_name())).expect("copied");
        }
    }
    std::fs::copy(base.join("model_index.json"), folder.path().join("model_index.json")).expect("copied");
    let model = format!("model.path={}", folder.path().display());
    let page = inspect("configs/smoke.toml", &[&model], 2, &folder.path().join("look"));
    assert_eq!(figures(&page).len(), 2);
}
