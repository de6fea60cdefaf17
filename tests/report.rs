//! The page that every run writes: its content, that it is self-contained, and its rendering in a browser.
mod browser;

use candle_core::{Device, Tensor};
use image::{Rgb, RgbImage};
use seg4diff::config::RunConfig;
use seg4diff::data::{Mask, Sample};
use seg4diff::eval::analysis::{Analysis, BlockAnalysis};
use seg4diff::model::weights::files::ModelFiles;
use seg4diff::report::metrics::{StepMetrics, ValidationScores};
use seg4diff::report::segmentation::{SegmentationExample, Segmented};
use seg4diff::report::summary::{Scores, Stage, Summary};
use seg4diff::report::{
    DrawnSamples, Measured, RunReport, SampleDrawer, SampleFigure, TrainedLayers, ValidationPictures,
};
use seg4diff::sample::image::read_rgb8;
use std::path::{Path, PathBuf};

const NASTY: &str = "<script>alert('1')</script> & \"quotes\" — Käse 犬 </code></pre><img src=x onerror=alert(1)>";

fn scores(miou: f64, fd_demo: f64) -> Scores {
    let per_class = [("cat", miou - 0.1), ("<b>犬</b>", miou + 0.05)].map(|(name, iou)| (name.to_string(), iou));
    Scores {
        miou: Some(miou),
        pixel_accuracy: Some(miou + 0.2),
        fd_demo: Some(fd_demo),
        kid: Some(f64::NAN),
        held_out_flow: Some(fd_demo / 50.0),
        per_class: per_class.into(),
        ..Default::default()
    }
}

fn summary() -> Summary {
    let found = [(0.5497, 12.5), (0.6620, 12.4), (0.5531, 13.1)].map(|(a, b)| scores(a, b));
    Summary(Stage::ALL.into_iter().zip(found).collect())
}

/// A sun over the sea, 64 × 64: labels 5 (sky), 7 (sea) and 9 (sun), a rim of 255.
fn scene(sun: u32) -> (RgbImage, Vec<u32>) {
    let label = |x: u32, y: u32| match () {
        () if x == 0 => 255,
        () if x.abs_diff(sun).pow(2) + y.abs_diff(22).pow(2) < 130 => 9,
        () if y < 40 => 5,
        () => 7,
    };
    let image = RgbImage::from_fn(64, 64, |x, y| match label(x, y) {
        9 => Rgb([250, 205, 70]),
        7 => Rgb([30, 90 + (x * 7 + y * 13) as u8 % 30, 150]),
        _ => Rgb([150 + y as u8, 190, 235]),
    });
    (image, (0..64 * 64).map(|pixel| label(pixel % 64, pixel / 64)).collect())
}

fn example(key: &str, sun: u32) -> SegmentationExample {
    let (image, truth) = scene(sun);
    let classes = [(5, "sky"), (7, "sea"), (9, "<i>sun</i>")].map(|(label, name)| (label, name.to_string()));
    // The base model's attention is a little to the left of the object.
    let segmented = |shift: usize, sharpness: f32| {
        let at = |x: usize, y: usize| truth[(y * 4 + 2) * 64 + (x * 4 + 2 + shift).min(63)];
        let noise = |index: usize| (index * 7919 % 97) as f32 / 97.0;
        let value = |(class, _): &(u32, String), index: usize| {
            f32::from(at(index % 16, index / 16) == *class) * sharpness + noise(index + *class as usize)
        };
        let values: Vec<f32> = classes.iter().flat_map(|class| (0..256).map(move |i| value(class, i))).collect();
        let labels = (0..64 * 64).map(|pixel| truth[pixel / 64 * 64 + (pixel % 64 + shift).min(63)]).collect();
        Segmented { maps: Tensor::from_vec(values, (3, 16, 16), &Device::Cpu).expect("maps"), labels }
    };
    SegmentationExample {
        key: key.into(),
        prompt: "sky sea sun".into(),
        stages: vec![(Stage::Before, segmented(9, 0.6)), (Stage::After, segmented(2, 3.0))],
        classes: classes.to_vec(),
        image,
        truth,
    }
}

fn metrics(steps: u64) -> Vec<StepMetrics> {
    let step = |step: u64| {
        let noise = (step * 7919 % 101) as f64 / 101.0 - 0.5;
        let (flow, dice) = (0.25 + 0.05 * noise, 0.9 - 0.4 * step as f64 / steps as f64 + 0.1 * noise);
        StepMetrics {
            step,
            samples: step * 8,
            loss: if step == 5 { f64::NAN } else { flow + 0.2 * dice },
            flow,
            focal: 0.1,
            dice,
            lr: 1e-3 * (1.0 - step as f64 / steps as f64),
            grad_norm: 0.3 + noise.powi(2),
            images_per_s: 20.0 + noise,
            seconds: 0.4,
            validation: step.is_multiple_of(100).then(|| ValidationScores {
                miou: Some(0.4 + step as f64 / 1000.0),
                held_out_flow: Some(0.4321),
                ..Default::default()
            }),
            ..Default::default()
        }
    };
    (1..=steps).map(step).collect()
}

/// Three blocks, of which block 1 segments best.
fn analysis(miou: f64) -> Analysis {
    let block = |block: usize| BlockAnalysis {
        block,
        miou: if block == 1 { miou } else { 0.2 },
        pixel_accuracy: 0.7,
        image_to_text: 0.1 * block as f64,
        text_to_image: (block < 2).then_some(0.4),
        image_value_norm: 3.0,
        text_value_norm: 1.5,
        blurred_difference: None,
    };
    Analysis {
        blocks: (0..3).map(block).collect(),
        expert: 1,
        lead_over_median: miou - 0.2,
        lead_over_next: miou - 0.2,
        uniform_image_to_text: 0.2,
        uniform_text_to_image: 0.8,
        images: 8,
    }
}

fn report(output: &Path) -> RunReport {
    let pictures = |shift: u32| (0..4).map(|number| scene(12 + number * 10 + shift).0).collect();
    RunReport {
        output: output.to_path_buf(),
        model: format!("models/{NASTY}"),
        model_files: vec![format!("vae={NASTY}")],
        diffusers_model: format!("models/{NASTY}"),
        looked_at: "block 4".into(),
        probed_layer: 4,
        resolution: 64,
        steps: (400, 400),
        facts: vec![("Base model", NASTY.into()), ("Images seen", "3200".into())],
        trained: vec![
            TrainedLayers { kind: "LoRA attn.to_q".into(), blocks: Some((5, 6)), rank: Some(16), parameters: 20_480 },
            TrainedLayers { kind: "score head".into(), blocks: None, rank: None, parameters: 38_145 },
        ],
        config_toml: format!("# {NASTY}\nseed = 0\n\n[model]\npath = \"x\"\n"),
        metrics: metrics(400),
        validations: [200, 400]
            .map(|step| (step, ValidationPictures { samples: Some(scene(9).0), attention: Some(scene(30).0) }))
            .into(),
        measured: Measured {
            summary: summary(),
            segmentation: vec![example("val/000001", 20), example(NASTY, 44)],
            samples: DrawnSamples {
                prompts: vec!["the sun over the sea".into(), NASTY.into(), "evening".into(), "morning".into()],
                columns: vec![(Stage::Before, pictures(0)), (Stage::After, pictures(6))],
            },
            blocks: vec![(Stage::Before, analysis(0.3)), (Stage::After, analysis(0.5))],
        },
        data: vec![trained_on("train/000007"), trained_on(NASTY)],
    }
}

/// A sample of the scene, whose masks are paired with words.
fn trained_on(key: &str) -> SampleFigure {
    let config = RunConfig::load(Path::new("configs/smoke.toml"), &["data.resolution=64".into()]).expect("config");
    let drawer =
        SampleDrawer::open(&config, &ModelFiles::open(&config.model.path).expect("model")).expect("tokenizers");
    let (image, labels) = scene(30);
    let mask = |class: usize, label: u32| {
        let mut mask = Mask::new(64, 64);
        let inside = (0..64 * 64).filter(|pixel| labels[*pixel] == label);
        inside.for_each(|pixel| mask.set(pixel % 64, pixel / 64));
        mask.class = Some(class);
        mask
    };
    let sample = Sample {
        key: key.into(),
        epoch: 1,
        image: image.into_raw(),
        encoded: None,
        prompt: format!("sun {NASTY}"),
        classes: vec!["sun".into(), NASTY.into()],
        masks: vec![mask(0, 9), mask(1, 7)],
        is_dropped: false,
    };
    drawer.draw(&sample, 6).expect("drawn")
}

/// Writes the report into a new folder; `KEEP_REPORT=DIR` keeps it for viewing.
fn written(report: impl FnOnce(&Path) -> RunReport) -> (tempfile::TempDir, PathBuf, String) {
    let folder = tempfile::tempdir().expect("folder");
    let output = folder.path().join("demo");
    report(&output).write(&output).expect("written");
    let page = output.join("report.html");
    let text = std::fs::read_to_string(&page).expect("page");
    if let Some(keep) = std::env::var_os("KEEP_REPORT") {
        std::fs::create_dir_all(&keep)
            .and_then(|()| std::fs::write(Path::new(&keep).join("report.html"), &text))
            .expect("kept");
    }
    (folder, output, text)
}

/// The text of each cell of a table in the page, row by row.
fn cells(html: &str, class: &str) -> Vec<Vec<String>> {
    let table = html.split(&format!("<table class=\"{class}\">")).nth(1).expect("the table");
    let table = table.split("</table>").next().unwrap_or_default();
    let text = |cell: &str| {
        let parts = cell.split('<').enumerate();
        let parts = parts.map(|(index, part)| if index == 0 { part } else { part.split_once('>').map_or("", |p| p.1) });
        parts.collect::<Vec<_>>().join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let cells = |row: &str| -> Vec<String> {
        let row = row.split("</tr>").next().unwrap_or_default().replace("<th", "<td");
        row.split("<td").skip(1).filter_map(|cell| cell.split_once('>')).map(|(_, cell)| text(cell)).collect()
    };
    table.split("<tr").skip(1).map(cells).collect()
}

const TABLE: [[&str; 5]; 4] = [
    [
        "",
        "mIoU higher is better",
        "pixel accuracy higher is better",
        "FD-demo lower is better",
        "held-out flow loss lower is better",
    ],
    ["base", "55.0 %", "75.0 %", "12.50", "0.2500"],
    ["after", "66.2 % +11.2", "86.2 % +11.2", "12.40 −0.8 %", "0.2480 −0.8 %"],
    ["without masks", "55.3 % +0.3", "75.3 % +0.3", "13.10 +4.8 %", "0.2620 +4.8 %"],
];

#[test]
fn the_page_says_what_was_measured_and_nothing_in_it_is_taken_for_markup() {
    let (_folder, output, page) = written(report);
    assert_eq!(cells(&page, "scores"), TABLE);
    // One for each place that shows the string, none of them as markup.
    assert!(page.matches("&lt;script&gt;alert('1')&lt;/script&gt;").count() >= 8, "{page}");
    assert!(
        !page.contains("<script")
            && !page.contains("<img src=x")
            && !page.contains("<i>sun")
            && !page.contains("<b>犬")
    );
    assert!(page.contains("Käse 犬") && page.contains("<html lang=\"en\">") && page.contains("<title>demo "));
    // Nothing is fetched: every address is a `data:` URI.
    for attribute in ["src=\"", "href=\"", "url("] {
        for rest in page.split(attribute).skip(1) {
            assert!(
                rest.starts_with("data:") || rest.starts_with("#clip"),
                "{attribute}{}",
                &rest[..40.min(rest.len())]
            );
        }
    }
    assert!(!page.contains("@import"));
    let pictures = page.matches("<img ").count();
    // Two examples of picture, truth, and two rows of prediction and three classes; four samples of two models; two
    // validations of attention and samples; two pictures that were trained on and their masks.
    assert_eq!(pictures, 2 * (2 + 2 * 4) + 4 * 2 + 2 * 2 + 2 * 2);
    assert!(page.contains("All blocks") && page.matches("<svg class=\"blocks\"").count() == 2);
    assert!(page.contains("block 1: 0.5"), "the drawing names its values");
    assert!(page.contains("While it was trained") && page.contains("Step 400: mIoU 80.0 %, held-out flow loss 0.4321"));
    assert_eq!(page.matches("alt=\"").count(), pictures);
    assert!(page.len() < 600_000, "{} bytes", page.len());

    let summary: serde_json::Value =
        serde_json::from_slice(&std::fs::read(output.join("summary.json")).expect("summary")).expect("JSON");
    assert_eq!(summary["before"]["miou"], 0.5497);
    assert_eq!(summary["without_masks"]["fd_demo"], 13.1);
    assert_eq!(summary["after"]["per_class"]["cat"], 0.6620 - 0.1);
    for absent in ["fid", "kid"] {
        assert!(summary["after"].get(absent).is_none(), "{summary}");
    }
    assert_eq!(read_rgb8(&output.join("samples/after/000003.png")).expect("picture"), scene(12 + 30 + 6).0);
    let sheet = read_rgb8(&output.join("samples/segmentation.png")).expect("sheet");
    // Two bands, each eight cells wide (picture and truth are two each) and two high, with gaps.
    assert_eq!(sheet.dimensions(), (8 * 134 + 6, 2 * (2 * 134 + 6)));
}

#[test]
fn the_closing_table_is_for_terminals() {
    let table = summary().table();
    let expected = "\
                mIoU             pixel accuracy   FD-demo         held-out flow loss
base            55.0 %           75.0 %           12.50           0.2500
after           66.2 % (+11.2)   86.2 % (+11.2)   12.40 (−0.8 %)  0.2480 (−0.8 %)
without masks   55.3 % (+0.3)    75.3 % (+0.3)    13.10 (+4.8 %)  0.2620 (+4.8 %)";
    let words = |text: &str| -> Vec<Vec<String>> {
        text.lines().map(|line| line.split_whitespace().map(String::from).collect()).collect()
    };
    assert_eq!(words(&table), words(expected), "{table}");
    let column = |line: &str, text: &str| line.split(text).next().map(|before| before.chars().count());
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(column(lines[0], "FD-demo"), column(lines[2], "12.40"));
    assert_eq!(Summary::default().table(), "");
}

#[test]
fn a_run_that_measures_nothing_or_was_stopped_has_a_page_too() {
    let (_folder, output, page) = written(|output| RunReport {
        steps: (20, 400),
        metrics: metrics(20),
        measured: Measured::default(),
        ..report(output)
    });
    assert!(page.contains("Stopped after step 20 of 400.") && !page.contains("load_lora_weights"));
    for section in ["results", "attention", "samples", "blocks"] {
        assert!(!page.contains(&format!("id=\"{section}\"")), "{section}");
    }
    assert_eq!(page.matches("<svg").count(), 7);
    assert!(!output.join("summary.json").exists() && !output.join("samples").exists());
    let (_folder, _, page) = written(|output| RunReport { metrics: vec![], ..report(output) });
    assert!(!page.contains("class=\"panel\"") && page.contains("load_lora_weights"));
    // A model in one file, which diffusers has as a repository.
    let (_folder, _, page) = written(|output| RunReport {
        model: "models/flux1-dev.safetensors".into(),
        model_files: vec!["vae=models/ae.safetensors".into(), "config=hf:org/name".into()],
        diffusers_model: "hf:org/name@v1".into(),
        ..report(output)
    });
    let files =
        "--model models/flux1-dev.safetensors --model-file vae=models/ae.safetensors --model-file config=hf:org/name";
    assert!(page.contains(files));
    assert!(page.contains("DiffusionPipeline.from_pretrained(&quot;org/name&quot;, revision=&quot;v1&quot;)"));
}

/// Of a large vocabulary, the page shows the classes that occur, and explains every colour it uses.
#[test]
fn many_classes_find_room() {
    let mut example = example("vocabulary", 30);
    example.classes.splice(0..0, (100..140).map(|label| (label, format!("class-{label}"))));
    for (_, segmented) in &mut example.stages {
        let absent = Tensor::zeros((40, 16, 16), candle_core::DType::F32, &Device::Cpu).expect("maps");
        segmented.maps = Tensor::cat(&[&absent, &segmented.maps], 0).expect("maps");
        segmented.labels[7] = 139;
    }
    let (_folder, _, page) = written(|output| {
        let mut report = report(output);
        report.measured.segmentation = vec![example];
        report
    });
    let rows = cells(&page, "maps");
    assert_eq!(rows.iter().map(Vec::len).collect::<Vec<_>>(), [2 + 6; 3]);
    assert_eq!(rows[0][5..], ["sky", "sea", "&lt;i&gt;sun&lt;/i&gt;"]);
    assert!(page.contains("class-139") && !page.contains("class-138"));
    assert!(page.contains("another class, or none"));
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_half_written() {
    let folder = tempfile::tempdir().expect("folder");
    let fails = |change: &dyn Fn(&mut Measured)| {
        let output = folder.path().join("run");
        let mut report = report(&output);
        change(&mut report.measured);
        let problem = report.write(&output).expect_err("refused").to_string();
        assert!(!output.join("report.html").exists(), "{problem}");
        problem
    };
    assert!(
        fails(&|m| {
            m.segmentation[1].truth.pop();
        })
        .contains("not one label for each pixel")
    );
    assert!(
        fails(&|m| {
            m.segmentation[1].stages[0].1.labels.clear();
        })
        .contains("not one label for each pixel")
    );
    assert!(
        fails(&|m| {
            m.segmentation[0].classes.pop();
        })
        .contains("not one attention map for each class")
    );
    assert!(
        fails(&|m| {
            m.samples.columns[1].1.pop();
        })
        .contains("after: 3 samples of 4 prompts")
    );
    // A folder that is a file.
    std::fs::write(folder.path().join("taken"), "").expect("file");
    let taken = folder.path().join("taken");
    assert!(report(&taken).write(&taken).expect_err("refused").to_string().contains("taken"));
}

#[test]
fn a_browser_reads_the_table_and_has_nothing_to_complain_about() {
    let Some(browser) = browser::find() else { return };
    let (folder, output, page) = written(report);
    let seen = browser::open(&browser, &output.join("report.html"), 1400);
    assert_eq!(seen.console, [""; 0]);
    assert_eq!(seen.requests, [""; 0]);
    assert_eq!(cells(&seen.dom, "scores"), TABLE);

    // The check works: a page that fetches something and has an invalid path reports both.
    let broken = page
        .replace("<meta http-equiv", "<meta name")
        .replace("</h1>", "</h1><svg><path d=\"Mnan\"></path></svg><img src=\"http://127.0.0.1:9/picture.png\">");
    let file = folder.path().join("broken.html");
    std::fs::write(&file, broken).expect("page");
    let seen = browser::open(&browser, &file, 1400);
    assert!(seen.console.iter().any(|line| line.contains("<path> attribute d")), "{:?}", seen.console);
    assert!(seen.requests.iter().any(|address| address.starts_with("http://127.0.0.1:9/")), "{:?}", seen.requests);
}

/// Wide or narrow as a phone, all pictures and curves are drawn, and the page is never wider than its window: tables
/// and code scroll by themselves.
#[test]
fn nothing_is_lost_or_sticks_out_of_the_window() {
    let Some(browser) = browser::find() else { return };
    let (folder, _, page) = written(report);
    let script = "<script>
        const drawn = [...document.querySelectorAll('img, svg path, svg text')];
        const flat = drawn.filter(e => { const place = e.getBoundingClientRect(); return place.width < 4; });
        const root = document.documentElement;
        document.body.dataset.seen = [innerWidth, root.scrollWidth, drawn.length, flat.length].join(' ');
        </script></body>";
    let file = folder.path().join("measured.html");
    std::fs::write(&file, page.replace("<meta http-equiv", "<meta name").replace("</body>", script)).expect("page");
    let drawn = ["<img ", "<path ", "<text "].map(|tag| page.matches(tag).count()).iter().sum::<usize>();
    for width in [390, 768, 1400] {
        let seen = browser::open(&browser, &file, width);
        let found = seen.dom.split("data-seen=\"").nth(1).and_then(|rest| rest.split('"').next());
        assert_eq!(found, Some(format!("{width} {width} {drawn} 0").as_str()));
    }
}
