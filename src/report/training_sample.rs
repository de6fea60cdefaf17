//! A training sample as pages show it: the picture as cropped, its masks over it, and the prompt as it was cut into tokens.
use super::picture::{data_uri, resized};
use super::segmentation::{chip, color};
use super::summary::percent;
use crate::config::RunConfig;
use crate::data::{Mask, Sample};
use crate::model::text::{PromptTokenizers, PromptTokens};
use crate::model::weights::files::ModelFiles;
use crate::system::error::{Error, Result};
use image::{DynamicImage, Rgb, RgbImage};
use maud::{Markup, html};
use serde::{Deserialize, Serialize};

/// Greatest side of a picture in pixels.
const SIDE: u32 = 320;
/// Opacity of a mask's colour over the picture.
const OPACITY: f32 = 0.55;
/// Width of its outline in pixels, within the mask.
const OUTLINE: u32 = 2;
/// Colour of a picture that is not decoded.
const NO_PICTURE: Rgb<u8> = Rgb([0xc8; 3]);

/// Draws the samples of a run.
pub struct SampleDrawer {
    tokenizers: PromptTokenizers,
    /// Side of the training images in pixels.
    side: u32,
    /// Whether the model sees captions and names: no prompt is learnt in their place.
    has_prompts: bool,
}

/// A training sample on a page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleFigure {
    /// Its place in the order of training, from 0.
    pub number: u64,
    /// Number of the pass over the data set, from 0.
    pub epoch: u64,
    /// Its key in the data set.
    pub key: String,
    /// The picture as cropped, a `data:` URI.
    pub picture: String,
    /// The masks over the picture, a `data:` URI.
    pub masked: String,
    /// The prompt for each encoder that cuts it in a way of its own.
    pub prompts: Vec<PromptLine>,
    /// The masks in their order.
    pub masks: Vec<MaskEntry>,
    /// What a reader should know of it.
    pub notes: Vec<String>,
}

/// A prompt as the tokenizer of an encoder cuts it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptLine {
    /// The encoders.
    pub encoders: String,
    /// Tokens that they have room for.
    pub limit: usize,
    /// The prompt's text, cut into tokens and what lies between them.
    pub pieces: Vec<Piece>,
}

/// A piece of a prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Piece {
    /// Its text.
    pub text: String,
    /// Whether it is a token; else it lies between two.
    pub is_token: bool,
    /// Whether it is beyond the encoder's length.
    pub is_cut: bool,
    /// The mask that is paired with it, an index.
    pub mask: Option<usize>,
}

/// A mask in the legend of a sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaskEntry {
    /// Its class's name; none where it is matched while training.
    pub name: Option<String>,
    /// Its share of the picture.
    pub share: f64,
}

impl SampleDrawer {
    /// Reads the tokenizers of the run's base model, whose files are `files`.
    ///
    /// # Errors
    /// A tokenizer is missing, or damaged.
    pub fn open(config: &RunConfig, files: &ModelFiles) -> Result<Self> {
        Ok(Self {
            tokenizers: PromptTokenizers::open(files, &config.model)?,
            side: config.data.resolution as u32,
            has_prompts: config.data.has_prompts,
        })
    }

    /// Draws `sample`, number `number` in the order of training.
    ///
    /// # Errors
    /// A tokenizer cannot encode the prompt, or the picture's size is wrong.
    pub fn draw(&self, sample: &Sample, number: u64) -> Result<SampleFigure> {
        let [picture, masked] = self.pictures(sample, SIDE)?;
        let tokenizers = &self.tokenizers;
        let tokens = tokenizers.tokens(&sample.prompt)?;
        let names: Vec<&str> = sample.classes.iter().map(String::as_str).collect();
        let spans = tokenizers.spans(&names)?;
        let paired = |token: usize| {
            let is_in = |mask: &Mask| mask.class.and_then(|class| spans.get(class)?.clone());
            sample.masks.iter().position(|mask| is_in(mask).is_some_and(|span| span.contains(&token)))
        };
        let prompts = tokens.iter().enumerate().map(|(line, tokens)| {
            // Names are located among CLIP-L's tokens.
            PromptLine::new(&sample.prompt, tokens, |token| if line == 0 { paired(token) } else { None })
        });
        let total = (sample.masks.first().map_or(1, |mask| mask.width() * mask.height())).max(1) as f64;
        let entry = |mask: &Mask| MaskEntry {
            name: mask.class.and_then(|class| sample.classes.get(class).cloned()),
            share: mask.area() as f64 / total,
        };
        let mut notes = self.notes(sample, &tokens);
        for (name, _) in names.iter().zip(&spans).filter(|(_, span)| span.is_none()) {
            notes.push(format!("the mask of {name:?} meets no word: CLIP has no room for the whole name"));
        }
        if sample.image.is_empty() {
            notes.push("latents from the cache: the picture is not decoded; seg4diff inspect shows it".into());
        }
        Ok(SampleFigure {
            number,
            epoch: sample.epoch,
            key: sample.key.clone(),
            picture: data_uri(&picture)?,
            masked: data_uri(&masked)?,
            prompts: prompts.collect(),
            masks: sample.masks.iter().map(entry).collect(),
            notes,
        })
    }

    /// The picture as cropped, of at most `side` pixels, and its masks over it.
    pub(super) fn pictures(&self, sample: &Sample, side: u32) -> Result<[RgbImage; 2]> {
        let own = self.side;
        let picture = match sample.image.is_empty() {
            true => Some(RgbImage::from_pixel(own, own, NO_PICTURE)),
            false => RgbImage::from_raw(own, own, sample.image.clone()),
        };
        let picture = picture.ok_or_else(|| Error::Failed(format!("{}: not {own}×{own} pixels", sample.key)))?;
        let picture = resized(&picture, side);
        let masked = paint(&picture, &sample.masks);
        Ok([picture, masked])
    }

    /// What a reader should know of a sample.
    fn notes(&self, sample: &Sample, tokens: &[PromptTokens]) -> Vec<String> {
        let mut notes = vec![];
        if sample.is_dropped {
            notes.push("caption dropped, and the masks with it (data.caption_dropout)".to_string());
        } else if sample.masks.is_empty() {
            notes.push("no mask".to_string());
        }
        if self.has_prompts && sample.prompt.trim().is_empty() && !sample.is_dropped {
            notes.push("the prompt is empty".to_string());
        }
        for PromptTokens { encoders, ranges, limit } in tokens {
            let count = ranges.len();
            if count > *limit {
                let cut = count - limit;
                notes.push(format!("cut: {encoders} has room for {limit} tokens, the last {cut} of {count} are lost"));
            }
        }
        notes
    }
}

impl PromptLine {
    fn new(prompt: &str, tokens: &PromptTokens, mask: impl Fn(usize) -> Option<usize>) -> Self {
        let between = |start: usize, end: usize| {
            let text = prompt.get(start..end).filter(|text| !text.is_empty())?;
            Some(Piece { text: text.into(), is_token: false, is_cut: false, mask: None })
        };
        let (mut pieces, mut end) = (vec![], 0);
        for (number, range) in tokens.ranges.iter().enumerate() {
            let is_cut = number >= tokens.limit;
            // Tokens of one character's bytes all stand for the whole character: the first shows it.
            let start = range.start.max(end);
            pieces.extend(between(end, start));
            end = range.end.max(end);
            let text = prompt.get(start..end).unwrap_or_default().into();
            pieces.push(Piece { text, is_token: true, is_cut, mask: mask(number) });
        }
        pieces.extend(between(end, prompt.len()));
        Self { encoders: tokens.encoders.clone(), limit: tokens.limit, pieces }
    }
}

/// The masks over the grey picture, large ones first, so that a small one within a large one is seen.
fn paint(picture: &RgbImage, masks: &[Mask]) -> RgbImage {
    let (width, height) = picture.dimensions();
    let mut painted = DynamicImage::from(DynamicImage::from(picture.clone()).to_luma8()).into_rgb8();
    let mut order: Vec<usize> = (0..masks.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(masks[index].area()));
    for index in order {
        let inside = masks[index].shrink_nearest(width as usize, height as usize);
        let is_inside = |x: u32, y: u32| inside[(y * width + x) as usize] > 0.5;
        let near = |at: u32, size: u32| at.saturating_sub(OUTLINE)..=(at + OUTLINE).min(size - 1);
        let is_outline = |x: u32, y: u32| near(y, height).any(|y| near(x, width).any(|x| !is_inside(x, y)));
        let color = color(index).map(f32::from);
        for (x, y, Rgb(pixel)) in painted.enumerate_pixels_mut().filter(|(x, y, _)| is_inside(*x, *y)) {
            let opacity = if is_outline(x, y) { 1.0 } else { OPACITY };
            *pixel = std::array::from_fn(|channel| {
                (color[channel] * opacity + f32::from(pixel[channel]) * (1.0 - opacity)).round() as u8
            });
        }
    }
    painted
}

impl SampleFigure {
    /// The sample as a figure of a page.
    pub(super) fn markup(&self) -> Markup {
        let Self { number, epoch, key, .. } = self;
        html! {
            figure.example {
                figcaption { (number + 1) ". " (key) span.label { "epoch " (epoch) } }
                div.views {
                    div.given.large {
                        div { span { "picture" } img src=(self.picture) alt={ "picture, " (key) }; }
                        div { span { "masks" } img src=(self.masked) alt={ "masks, " (key) }; }
                    }
                    div.words {
                        @for line in &self.prompts { (line.markup()) }
                        (self.legend())
                        @for note in &self.notes { p.remark { (note) } }
                    }
                }
            }
        }
    }

    fn legend(&self) -> Markup {
        let matched = self.masks.iter().any(|mask| mask.name.is_none());
        html! {
            @if !self.masks.is_empty() {
                p.legend {
                    @for (index, mask) in self.masks.iter().enumerate() {
                        span { (chip(Some(&color(index)))) @if let Some(name) = &mask.name { (name) " " } (percent(mask.share)) }
                    }
                    @if matched { span { "matched with words while training" } }
                }
            }
        }
    }
}

impl PromptLine {
    fn markup(&self) -> Markup {
        let tokens = self.pieces.iter().filter(|piece| piece.is_token);
        let style = |piece: &Piece| {
            let [red, green, blue] = color(piece.mask?);
            Some(format!("--mask:rgb({red},{green},{blue})"))
        };
        html! {
            div.prompt {
                span.label { (self.encoders) ": " (tokens.count()) " of " (self.limit) " tokens" }
                p {
                    @for piece in &self.pieces {
                        @if piece.is_cut { s.token { (piece.text) } }
                        @else if let Some(style) = style(piece) { b.token style=(style) { (piece.text) } }
                        @else if piece.is_token { span.token { (piece.text) } }
                        @else { (piece.text) }
                    }
                }
            }
        }
    }
}

/// What the marks in figures of samples mean.
pub(super) fn how_to_read() -> Markup {
    html! {
        p.note {
            "Pictures as they are cropped and mirrored, the masks over them, and the prompt as the tokenizer cuts it: a \
             token underlined, in a mask's colour where it is paired with that mask, "
            s { "struck through" }
            " beyond the encoder's length."
        }
    }
}
