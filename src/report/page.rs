//! `report.html`: a run's results on one self-contained page.
use super::blocks;
use super::curves::{panels, smoothed_steps, validation_panels};
use super::metrics::StepMetrics;
use super::samples::DrawnSamples;
use super::segmentation::{SegmentationExample, sheet_of};
use super::summary::{Metric, Stage, Summary, percent};
use super::trained_layers::TrainedLayers;
use super::training_sample::SampleFigure;
use super::training_sample::how_to_read;
use super::validation::{self, ValidationPictures};
use crate::eval::analysis::Analysis;
use crate::sample::image::write_png;
use crate::system::error::Result;
use crate::system::whole_file::write_atomically;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const STYLE: &str = include_str!("page.css");
/// Makes the browser refuse external resources and scripts.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// Files of a run in the order of its page, with descriptions.
const FILES: [(&str, &str); 10] = [
    ("lora.safetensors", "the LoRA, for diffusers and ComfyUI"),
    ("lora-best.safetensors", "the LoRA at its best validation"),
    ("summary.json", "the scores, for programs"),
    ("samples", "the pictures of this page"),
    ("validation", "pictures drawn while it was trained"),
    ("tensorboard", "the curves for TensorBoard"),
    ("metrics.jsonl", "a line a step: loss and its terms, learning rate, gradient norm, speed"),
    ("config.toml", "every setting as it was used"),
    ("checkpoints", "all that resuming needs"),
    ("best", "the checkpoint with the best validation"),
];

/// Measurements before and after training; empty where none are configured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Scores of all stages.
    pub summary: Summary,
    /// Some held-out pictures.
    pub segmentation: Vec<SegmentationExample>,
    /// Drawn pictures of all stages.
    pub samples: DrawnSamples,
    /// The expert block analysis, where configured.
    pub blocks: Vec<(Stage, Analysis)>,
}

/// The content of a run's page.
#[derive(Clone, Debug)]
pub struct RunReport {
    /// The run's folder as configured.
    pub output: PathBuf,
    /// The base model as configured: a folder or file, or `hf:org/name@revision`.
    pub model: String,
    /// Parts that are elsewhere, as `--model-file` takes them.
    pub model_files: Vec<String>,
    /// What diffusers loads in its place: a folder, or `hf:org/name@revision`.
    pub diffusers_model: String,
    /// The expert blocks in words, for example `block 9`.
    pub looked_at: String,
    /// The block in the example command of `probe`.
    pub probed_layer: usize,
    /// Side of the training images in pixels.
    pub resolution: usize,
    /// Steps done, and steps configured; they differ if the run was stopped.
    pub steps: (u64, u64),
    /// Facts about the run, as pairs of name and value.
    pub facts: Vec<(&'static str, String)>,
    /// What was trained, by kind of layer.
    pub trained: Vec<TrainedLayers>,
    /// The resolved configuration.
    pub config_toml: String,
    /// One entry a step.
    pub metrics: Vec<StepMetrics>,
    /// Pictures of some validations, by step.
    pub validations: BTreeMap<u64, ValidationPictures>,
    /// What was measured.
    pub measured: Measured,
    /// The first samples that were trained on.
    pub data: Vec<SampleFigure>,
}

impl RunReport {
    /// Writes `summary.json`, `samples/` (whatever exists of them) and finally `report.html` into `folder`, each file
    /// atomically.
    ///
    /// # Errors
    /// A file cannot be written, or an example's sizes do not match.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let Measured { summary, segmentation, samples, .. } = &self.measured;
        if !summary.is_empty() {
            summary.write(&folder.join("summary.json"))?;
        }
        samples.write(&folder.join("samples"))?;
        if !segmentation.is_empty() {
            write_png(&folder.join("samples/segmentation.png"), &sheet_of(segmentation)?)?;
        }
        let page = self.page(folder)?.into_string();
        write_atomically(&folder.join("report.html"), |out| out.write_all(page.as_bytes()))
    }

    fn is_complete(&self) -> bool {
        self.steps.0 >= self.steps.1
    }

    fn page(&self, folder: &Path) -> Result<Markup> {
        let name = self.output.file_name().unwrap_or(self.output.as_os_str()).to_string_lossy();
        let header = html! {
            p.kind { "seg4diff run" }
            h1 { (name) }
            p.state { (self.state()) }
        };
        let sections = html! {
            (self.results())
            (self.segmentation()?)
            (self.samples()?)
            (self.blocks())
            (self.training())
            (self.validation()?)
            (self.data())
            @if self.is_complete() { (self.usage()) }
            (files(folder))
            section #config {
                h2 { "Config" }
                pre tabindex="0" { code { (self.config_toml) } }
            }
        };
        Ok(document(&name, header, sections))
    }

    fn state(&self) -> Markup {
        let (done, asked) = self.steps;
        html! {
            @if self.is_complete() {
                "LoRA of " b { (self.model) } ", " (grouped(asked as usize)) " steps"
            } @else {
                b { "Stopped after step " (done) " of " (asked) "." } " Go on with the same command and " code { "--resume" } "."
            }
        }
    }

    fn results(&self) -> Markup {
        let summary = &self.measured.summary;
        let metrics = summary.metrics();
        if metrics.is_empty() {
            return html! {};
        }
        let has_share = metrics.iter().any(|metric| metric.is_share);
        html! {
            section #results {
                h2 { "Before and after" }
                div.scroll {
                    table.scores {
                        thead {
                            tr {
                                td {}
                                @for metric in &metrics {
                                    th scope="col" {
                                        (metric.name)
                                        span.label { @if metric.higher_is_better { "higher is better" } @else { "lower is better" } }
                                    }
                                }
                            }
                        }
                        tbody {
                            @for (&stage, scores) in &summary.0 {
                                tr class=(stage.key()) {
                                    th scope="row" { (stage.title()) }
                                    @for metric in &metrics { td { (score(summary, metric, stage, metric.of(scores))) } }
                                }
                            }
                        }
                    }
                }
                p.note {
                    "Measured on held-out data. Small figures: difference from the base"
                    @if has_share { ", of percentages in points" } "."
                }
                (per_class(summary))
            }
        }
    }

    fn segmentation(&self) -> Result<Markup> {
        let examples = &self.measured.segmentation;
        Ok(html! {
            @if !examples.is_empty() {
                section #attention {
                    h2 { "Where the expert looks" }
                    p.note {
                        "Held-out pictures, and the attention of " (self.looked_at) " to each class in the prompt, bright \
                         where it is highest. At each pixel the class with the highest attention is the prediction; the \
                         percentage is the share of pixels that it gets right."
                    }
                    @for example in examples { (example.figure()?) }
                }
            }
        })
    }

    fn samples(&self) -> Result<Markup> {
        let samples = &self.measured.samples;
        Ok(html! {
            @if !samples.is_empty() {
                section #samples {
                    h2 { "What it draws" }
                    p.note { "The same prompt and the same noise for each model." }
                    div.samples style=(format!("--narrowest:{}px", 125 * samples.columns.len())) { (samples.figures()?) }
                }
            }
        })
    }

    fn blocks(&self) -> Markup {
        html! {
            @if !self.measured.blocks.is_empty() {
                section #blocks {
                    h2 { "All blocks" }
                    p.note {
                        "How each block's attention segments, where attention goes, and how large the values are that it \
                         carries. Dark: the block that segments best."
                    }
                    div.pair-of-plots {
                        @for (stage, found) in &self.measured.blocks {
                            figure { figcaption { (stage.title()) } (blocks::svg(found)) }
                        }
                    }
                }
            }
        }
    }

    fn training(&self) -> Markup {
        let total: usize = self.trained.iter().map(|layers| layers.parameters).sum();
        let smoothed = smoothed_steps(self.metrics.len());
        html! {
            section #training {
                h2 { "Training" }
                (facts(&self.facts))
                @if !self.metrics.is_empty() {
                    div.panels { (panels(&self.metrics)) }
                    p.note { "Across: steps. Faint: each step. Bold: the mean over " (smoothed) " steps, whose last value stands above." }
                }
                @if !self.trained.is_empty() {
                    div.scroll {
                        table.plain {
                            caption { "What was trained" }
                            thead { tr { th scope="col" { "layers" } th scope="col" { "blocks" } th scope="col" { "rank" } th scope="col" { "parameters" } } }
                            tbody {
                                @for layers in &self.trained {
                                    tr {
                                        th scope="row" { (layers.kind) }
                                        td { @if let Some((some, all)) = layers.blocks { (some) " of " (all) } }
                                        td { @if let Some(rank) = layers.rank { (rank) } }
                                        td { (grouped(layers.parameters)) }
                                    }
                                }
                                tr.total { th scope="row" { "total" } td {} td {} td { (grouped(total)) } }
                            }
                        }
                    }
                }
            }
        }
    }

    fn validation(&self) -> Result<Markup> {
        let scores = self.metrics.iter().filter_map(|step| Some((step.step, step.validation.as_ref()?)));
        let scores: Vec<_> = scores.collect();
        Ok(html! {
            @if !scores.is_empty() {
                section #validation {
                    h2 { "While it was trained" }
                    p.note { "The same few held-out pictures, captions and noise each time." }
                    @if scores.len() > 1 { div.panels { (validation_panels(&self.metrics)) } }
                    (validation::figures(&self.validations, &scores)?)
                }
            }
        })
    }

    fn data(&self) -> Markup {
        html! {
            @if !self.data.is_empty() {
                section #data {
                    h2 { "Data" }
                    (how_to_read())
                    @for figure in &self.data { (figure.markup()) }
                }
            }
        }
    }

    fn usage(&self) -> Markup {
        let folder = self.output.to_string_lossy();
        let (model, revision) = match self.diffusers_model.strip_prefix("hf:") {
            Some(hub) => hub.split_once('@').map_or((hub, None), |(name, revision)| (name, Some(revision))),
            None => (self.diffusers_model.as_str(), None),
        };
        let revision = revision.map(|revision| format!(", revision={}", quoted(revision))).unwrap_or_default();
        let prompt = self.measured.samples.prompts.first().map_or("a cat on a bench", String::as_str);
        let side = self.resolution;
        let python = format!(
            "from diffusers import DiffusionPipeline\n\n\
             pipe = DiffusionPipeline.from_pretrained({}{revision})\n\
             pipe.load_lora_weights({}, weight_name=\"lora.safetensors\")\n\
             pipe({}, width={side}, height={side}).images[0].save(\"image.png\")",
            quoted(model),
            quoted(&folder),
            quoted(prompt)
        );
        let files: String = self.model_files.iter().map(|file| format!(" --model-file {}", shell(file))).collect();
        let lora = self.output.join("lora.safetensors");
        let (model, lora) = (shell(&self.model), shell(&lora.to_string_lossy()));
        let with_lora = format!("--model {model}{files} --lora {lora} --size {side}");
        let (prompt, layer) = (shell(prompt), self.probed_layer);
        let commands = format!(
            "seg4diff generate {with_lora} \\\n  --prompt {prompt} --out images\n\
             seg4diff probe {with_lora} \\\n  --image cat.jpg --prompt \"a cat on a bench\" --layer {layer} --out attention"
        );
        html! {
            section #usage {
                h2 { "Use the LoRA" }
                p.note { "In diffusers (ComfyUI loads the same file):" }
                pre tabindex="0" { code { (python) } }
                p.note { "Here: draw pictures, or look at the attention to each word in one of yours:" }
                pre tabindex="0" { code { (commands) } }
            }
        }
    }
}

/// A self-contained page.
pub(super) fn document(title: &str, header: Markup, sections: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · seg4diff" }
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
            }
            body {
                header { (header) }
                main { (sections) }
            }
        }
    }
}

/// Pairs of name and value.
pub(super) fn facts(facts: &[(&str, String)]) -> Markup {
    html! { dl.facts { @for (name, value) in facts { div { dt { (name) } dd { (value) } } } } }
}

/// A score with its difference from the base model's.
fn score(summary: &Summary, metric: &Metric, stage: Stage, value: Option<f64>) -> Markup {
    let Some(value) = value else { return html! { "–" } };
    let base = summary.base(metric).filter(|_| stage != Stage::Before);
    let difference = base.and_then(|base| Some((metric.difference(value, base)?, metric.is_better(value, base))));
    html! {
        (metric.show(value))
        @if let Some((text, is_better)) = difference {
            " " span.difference.better[is_better == Some(true)].worse[is_better == Some(false)] { (text) }
        }
    }
}

/// The IoU of each class, one column for each model.
fn per_class(summary: &Summary) -> Markup {
    let columns: Vec<_> = summary.0.iter().filter(|(_, scores)| !scores.per_class.is_empty()).collect();
    let names: BTreeSet<&String> = columns.iter().flat_map(|(_, scores)| scores.per_class.keys()).collect();
    html! {
        @if !columns.is_empty() {
            details {
                summary { "IoU of each of " (names.len()) " classes" }
                div.scroll {
                    table.plain {
                        thead {
                            tr { th scope="col" { "class" } @for (stage, _) in &columns { th scope="col" { (stage.title()) } } }
                        }
                        tbody {
                            @for name in names {
                                tr {
                                    th scope="row" { (name) }
                                    @for (_, scores) in &columns {
                                        td { @if let Some(iou) = scores.per_class.get(name) { (percent(*iou)) } @else { "–" } }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The run's files, as far as they exist.
fn files(folder: &Path) -> Markup {
    let found = FILES.iter().filter_map(|(name, meaning)| {
        let about = std::fs::metadata(folder.join(name)).ok()?;
        Some((*name, *meaning, about.is_file().then_some(about.len()), about.is_dir()))
    });
    html! {
        section #files {
            h2 { "Files" }
            div.scroll {
                table.plain.files {
                    tbody {
                        @for (name, meaning, bytes, is_folder) in found {
                            tr {
                                th scope="row" { code { (name) @if is_folder { "/" } } }
                                td { (meaning) }
                                td { @if let Some(bytes) = bytes { (byte_size(bytes)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Groups digits with non-breaking spaces: `1 234 567`.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let first = (digits.len() + 2) % 3 + 1;
    let rest = digits.as_bytes()[first..].chunks(3).map(String::from_utf8_lossy);
    rest.fold(digits[..first].to_string(), |text, group| text + "\u{202f}" + &group)
}

/// Bytes in decimal units: `12.3 kB`.
pub fn byte_size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// A Python string literal.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A quoted shell word.
fn shell(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@=+,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_string()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped() {
        let text = |number| grouped(number).replace('\u{202f}', " ");
        assert_eq!([1, 123, 1234, 123_456, 1_234_567].map(text), ["1", "123", "1 234", "123 456", "1 234 567"]);
    }

    #[test]
    fn words_of_the_shell_are_quoted() {
        assert_eq!([shell("runs/a-b"), shell("it's $5"), shell("")], ["runs/a-b", r"'it'\''s $5'", "''"]);
    }
}
