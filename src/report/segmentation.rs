//! Segmentation of held-out pictures before and after training: attention to each class, prediction, ground truth.
use super::heatmap::overlay;
use super::picture::{LARGEST, data_uri, resized, sheet, stacked};
use super::raw_values;
use super::summary::{Stage, percent};
use crate::eval::segmentation::{Class, ImageResult, SegmentationMap};
use crate::system::error::{Error, Result};
use candle_core::{Device, Tensor};
use image::{Rgb, RgbImage};
use maud::{Markup, html};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A colour-blind-safe palette (Okabe and Ito, 2008); further classes get darker variants.
const PALETTE: [[u8; 3]; 7] = [
    [0xe6, 0x9f, 0x00],
    [0x56, 0xb4, 0xe9],
    [0x00, 0x9e, 0x73],
    [0xf0, 0xe4, 0x42],
    [0xcc, 0x79, 0xa7],
    [0xd5, 0x5e, 0x00],
    [0x00, 0x72, 0xb2],
];
/// Colour of pixels whose label is not among the example's classes.
const OTHER: [u8; 3] = [0x8a, 0x8a, 0x8a];
/// Opacity of a label's colour over the grey picture.
const OPACITY: f32 = 0.78;
/// Greatest number of classes whose attention is shown; the largest classes are taken.
const MOST_MAPS: usize = 6;
/// Side of a sheet's cell in pixels.
const CELL: u32 = 128;

/// A held-out picture, and each model's segmentation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SegmentationExample {
    /// Key in the data set.
    pub key: String,
    /// The prompt that the attention belongs to.
    pub prompt: String,
    /// `[height, width]` pixels.
    #[serde(with = "raw_values::picture")]
    pub image: RgbImage,
    /// Label and name of each class with a map.
    pub classes: Vec<(u32, String)>,
    /// The true label of each pixel, `[height, width]`.
    pub truth: Vec<u32>,
    /// Each model's segmentation, the base model first.
    pub stages: Vec<(Stage, Segmented)>,
}

impl SegmentationExample {
    /// Converts an evaluation's result.
    ///
    /// # Errors
    /// The maps do not match their grid.
    pub fn new(result: &ImageResult, stage: Stage) -> Result<Self> {
        let labels = |map: &SegmentationMap| map.classes.iter().map(|&class| u32::from(class)).collect();
        let named = |&class: &u16| {
            let name = result.classes.get(usize::from(class)).map(|Class { name, .. }| name.clone());
            (u32::from(class), name.unwrap_or_default())
        };
        let maps = result.maps;
        let shape = (maps.classes.len(), maps.grid.0, maps.grid.1);
        let segmented = Segmented {
            maps: Tensor::from_slice(&maps.values, shape, &Device::Cpu)?,
            labels: labels(result.predicted),
        };
        let prompts: Vec<&str> = result.prompts.iter().map(|prompt| prompt.text.as_str()).collect();
        Ok(Self {
            key: result.image.key.clone(),
            prompt: prompts.join(" "),
            image: result.image.image.clone(),
            classes: maps.classes.iter().map(named).collect(),
            truth: labels(&result.image.truth),
            stages: vec![(stage, segmented)],
        })
    }
}

/// A model's segmentation of a picture.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Segmented {
    /// Attention to each class, in the example's order: `[classes, rows, columns]`.
    #[serde(with = "raw_values::tensor")]
    pub maps: Tensor,
    /// The predicted label of each pixel, `[height, width]`.
    pub labels: Vec<u32>,
}

/// An example's pictures for one model.
struct Shown {
    stage: Stage,
    prediction: RgbImage,
    /// For each class shown, in order.
    attention: Vec<RgbImage>,
    /// Fraction of the labelled pixels that are predicted correctly.
    correct: f64,
}

impl SegmentationExample {
    /// # Errors
    /// Maps or labels do not match the picture and its classes.
    fn check(&self) -> Result<()> {
        let problem = |what: &str| Err(Error::Failed(format!("segmentation example {}: {what}", self.key)));
        let pixels = self.image.pixels().len();
        if pixels == 0 || self.truth.len() != pixels || self.stages.iter().any(|(_, s)| s.labels.len() != pixels) {
            return problem("not one label for each pixel");
        }
        let fits = |segmented: &Segmented| {
            segmented.maps.rank() == 3 && segmented.maps.dim(0).ok() == Some(self.classes.len())
        };
        if !self.stages.iter().all(|(_, segmented)| fits(segmented)) {
            return problem("not one attention map for each class");
        }
        Ok(())
    }

    /// Indices of the classes whose attention is shown: the largest ones, in the example's order.
    fn shown_classes(&self) -> Vec<usize> {
        let area = |index: &usize| self.truth.iter().filter(|label| **label == self.classes[*index].0).count();
        let mut indices: Vec<usize> = (0..self.classes.len()).collect();
        indices.sort_by_cached_key(|index| std::cmp::Reverse(area(index)));
        indices.truncate(MOST_MAPS);
        indices.sort_unstable();
        indices
    }

    /// The colour of each label; the classes shown get the most distinct colours.
    fn colors(&self) -> BTreeMap<u32, [u8; 3]> {
        let shown = self.shown_classes();
        let others = (0..self.classes.len()).filter(|index| !shown.contains(index));
        let order = shown.iter().copied().chain(others);
        order.enumerate().map(|(place, class)| (self.classes[class].0, color(place))).collect()
    }

    /// Labels over the grey picture.
    fn paint(&self, labels: &[u32]) -> RgbImage {
        let colors = self.colors();
        let mut painted = self.image.clone();
        for (pixel, label) in painted.pixels_mut().zip(labels) {
            let [red, green, blue] = pixel.0.map(f32::from);
            let grey = 0.299 * red + 0.587 * green + 0.114 * blue;
            let color = colors.get(label).unwrap_or(&OTHER).map(f32::from);
            *pixel = Rgb(color.map(|channel| (channel * OPACITY + grey * (1.0 - OPACITY)).round() as u8));
        }
        painted
    }

    fn correct(&self, labels: &[u32]) -> f64 {
        let known = || self.truth.iter().zip(labels).filter(|(truth, _)| self.classes.iter().any(|(c, _)| c == *truth));
        known().filter(|(truth, label)| truth == label).count() as f64 / known().count().max(1) as f64
    }

    fn shown(&self, classes: &[usize]) -> Result<Vec<Shown>> {
        self.check()?;
        let longer = self.image.width().max(self.image.height());
        let picture = resized(&self.image, longer.clamp(CELL, LARGEST));
        let show = |(stage, segmented): &(Stage, Segmented)| {
            let attention = classes.iter().map(|class| overlay(&picture, &segmented.maps.get(*class)?));
            Ok(Shown {
                stage: *stage,
                prediction: self.paint(&segmented.labels),
                attention: attention.collect::<Result<_>>()?,
                correct: self.correct(&segmented.labels),
            })
        };
        self.stages.iter().map(show).collect()
    }

    /// The example as a figure of the page.
    pub(super) fn figure(&self) -> Result<Markup> {
        let classes = self.shown_classes();
        let image = |image: &RgbImage, what: &str| -> Result<Markup> {
            let alt = format!("{what}, {}", self.key);
            Ok(html! { img src=(data_uri(image)?) width=(image.width()) height=(image.height()) alt=(alt); })
        };
        let colors = self.colors();
        let labels = self.stages.iter().flat_map(|(_, segmented)| &segmented.labels).chain(&self.truth);
        let painted: BTreeSet<u32> = labels.copied().collect();
        let has_column = |label: &u32| classes.iter().any(|class| self.classes[*class].0 == *label);
        let others = self.classes.iter().filter(|(label, _)| painted.contains(label) && !has_column(label));
        let others: Vec<_> = others.collect();
        let has_unknown = painted.iter().any(|label| !colors.contains_key(label));
        Ok(html! {
            figure.example {
                figcaption { q { (self.prompt) } span.label { (self.key) } }
                div.views {
                    div.given {
                        div { span { "picture" } (image(&self.image, "picture")?) }
                        div { span { "ground truth" } (image(&self.paint(&self.truth), "ground truth")?) }
                    }
                    div.scroll {
                        table.maps {
                            thead {
                                tr {
                                    td {}
                                    th scope="col" { "prediction" }
                                    @for class in &classes {
                                        @let (label, name) = &self.classes[*class];
                                        th scope="col" { (chip(colors.get(label))) (name) }
                                    }
                                }
                            }
                            tbody {
                                @for Shown { stage, prediction, attention, correct } in self.shown(&classes)? {
                                    @let title = stage.title();
                                    tr {
                                        th scope="row" { (title) span.label { (percent(correct)) } }
                                        td { (image(&prediction, &format!("prediction, {title}"))?) }
                                        @for (class, attention) in classes.iter().zip(&attention) {
                                            td { (image(attention, &format!("attention to {}, {title}", self.classes[*class].1))?) }
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
                @if !others.is_empty() || has_unknown {
                    p.legend {
                        @for (label, name) in others { span { (chip(colors.get(label))) (name) } }
                        @if has_unknown { span { (chip(None)) "another class, or none" } }
                    }
                }
            }
        })
    }
}

/// The `place`-th colour.
pub(super) fn color(place: usize) -> [u8; 3] {
    let darker = 1.0 - 0.35 * (place / PALETTE.len()).min(2) as f32;
    PALETTE[place % PALETTE.len()].map(|channel| (f32::from(channel) * darker) as u8)
}

/// A colour swatch of a class.
pub(super) fn chip(color: Option<&[u8; 3]>) -> Markup {
    let [red, green, blue] = color.unwrap_or(&OTHER);
    html! { span.chip style=(format!("background:rgb({red},{green},{blue})")) {} }
}

/// All examples in one picture, each in a band: picture and ground truth, two cells wide and high; to their right, a
/// row for each model with its prediction and the attention to each class.
///
/// # Errors
/// Maps or labels do not match their picture.
pub fn sheet_of(examples: &[SegmentationExample]) -> Result<RgbImage> {
    let band = |example: &SegmentationExample| {
        let shown = example.shown(&example.shown_classes())?;
        let truth = example.paint(&example.truth);
        let mut pictures = vec![((0, 0), 2, &example.image), ((2, 0), 2, &truth)];
        for (row, shown) in (0..).zip(&shown) {
            let cells = std::iter::once(&shown.prediction).chain(&shown.attention);
            pictures.extend((4..).zip(cells).map(|(column, cell)| ((column, row), 1, cell)));
        }
        Ok(sheet(CELL, &pictures))
    };
    Ok(stacked(&examples.iter().map(band).collect::<Result<Vec<_>>>()?))
}
