//! Referring-expression segmentation by a block's attention.
//!
//! Each phrase is a prompt of its own. Its map is the mean over its tokens, scaled to [0, 1] on the token grid and
//! enlarged bilinearly; the prediction is the set of pixels at or above a threshold. The threshold is chosen on one
//! half of the images, and the scores are measured on the other half.
use super::prompts::Prompt;
use super::{SegmentationOptions, Segmenter};
use crate::config::named_blocks;
use crate::data::codec::rle::{RunLengths, StoredRunLengths};
use crate::eval::EvaluatedModel;
use crate::model::text::TextEncoders;
use crate::ops::{Enlarge, Rows};
use crate::sample::image::read_with_header;
use crate::system::error::{Error, Result};
use crate::system::limits::RECORD;
use crate::system::patience;
use crate::system::plain_name;
use image::RgbImage;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::iter::Peekable;
use std::path::{Path, PathBuf};

/// Number of thresholds tried: 0.05, 0.1, …, 0.95.
const THRESHOLDS: usize = 19;
/// What processes tell each other of a phrase: its image's half, and intersection and union at each threshold.
const NUMBERS: usize = 1 + 2 * THRESHOLDS;
/// IoU thresholds of the precision scores.
const FOUND: [f64; 3] = [0.5, 0.7, 0.9];

/// A line of the phrase file.
#[derive(Deserialize)]
struct PhraseRecord {
    image: String,
    phrase: String,
    mask: StoredRunLengths,
}

/// A phrase and its mask.
struct Phrase {
    line: usize,
    text: String,
    mask: RunLengths,
}

/// Consecutive phrases of one image.
struct ImagePhrases {
    /// Number of the image, by first appearance.
    image: usize,
    path: PathBuf,
    phrases: Vec<Phrase>,
}

/// Scores at the threshold chosen on the other half, from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReferringScores {
    /// The threshold with the greatest mean IoU on the half that it was chosen on.
    pub threshold: f64,
    /// Overall IoU: summed intersections over summed unions.
    pub oiou: f64,
    /// Mean IoU over phrases.
    pub miou: f64,
    /// Fraction of phrases with an IoU of at least 0.5 (0.7, 0.9).
    pub precision_at_50: f64,
    /// Share of phrases with an IoU of at least 0.7.
    pub precision_at_70: f64,
    /// Share of phrases with an IoU of at least 0.9.
    pub precision_at_90: f64,
    /// Number of phrases scored.
    pub phrases: u64,
    /// Number of phrases that the threshold was chosen on.
    pub phrases_for_threshold: u64,
}

/// Sums at one threshold over one half of the images.
#[derive(Clone, Copy, Debug, Default)]
struct OverlapSums {
    intersection: u64,
    union: u64,
    iou: f64,
    found: [u64; FOUND.len()],
}

/// Segments the phrases of `file`, whose images are in the folder `images`. The file has JSON lines with `image`,
/// `phrase` and `mask` (`{"size": [height, width], "counts": …}`, COCO run lengths). `progress` receives the number of
/// phrases done. Of several processes rank 0 has the scores.
///
/// Memory: a batch of images, and a number for each image's name.
///
/// # Errors
/// The options do not suit the model (`Error::Usage`); a line is malformed; a mask is empty or of another size than its
/// image; a phrase is too long for a prompt; the attention is not finite; there are fewer than two images; a
/// process has failed.
pub fn evaluate_referring(
    EvaluatedModel { pipeline, scheduler, turns }: EvaluatedModel,
    (file, images): (&Path, &Path),
    options: &SegmentationOptions,
    mut progress: impl FnMut(u64),
) -> Result<Option<ReferringScores>> {
    options.maps.check(&pipeline.transformer)?;
    let mut segmenter = Segmenter::new(pipeline, scheduler, options)?;
    let mut halves = [[OverlapSums::default(); THRESHOLDS]; 2];
    let mut counts = [0u64; 2];
    let mut groups = PhraseReader::open(file, images, options.limit)?;
    let processes = turns.processes;
    let mut measure = |mut batch: Vec<ImagePhrases>| -> Result<Vec<f64>> {
        let mut found = vec![];
        let pictures = batch.par_iter_mut().map(|group| group.read(file)).collect::<Result<Vec<RgbImage>>>()?;
        let numbered: Vec<_> = batch.iter().map(|group| group.image).zip(&pictures).collect();
        let prompts =
            batch.iter().map(|group| group.prompts(&pipeline.text_encoders, file)).collect::<Result<Vec<_>>>()?;
        let maps = segmenter.class_maps(&numbered, &prompts)?;
        let grid = segmenter.grid();
        for (group, maps) in batch.iter().zip(&maps) {
            for (phrase, map) in group.phrases.iter().zip(maps.values.chunks_exact(grid.0 * grid.1)) {
                if !map.iter().all(|value| value.is_finite()) {
                    let blocks = named_blocks(&options.maps.layers);
                    let problem = format!("line {}: the attention of {blocks} is not finite", phrase.line);
                    return Err(Error::file(file, problem));
                }
                found.push((group.image % 2) as f64);
                let overlaps = overlaps(map, grid, &phrase.mask).into_iter();
                found.extend(overlaps.flat_map(|(intersection, union)| [intersection as f64, union as f64]));
            }
        }
        Ok(found)
    };
    // Every process reads all lines, and the images of its own batches.
    loop {
        let batch = |_| groups.by_ref().take(options.batch.max(1)).collect::<Result<Vec<ImagePhrases>>>();
        let mut batches = (0..processes.size()).map(batch).collect::<Result<Vec<_>>>()?;
        if batches.iter().all(Vec::is_empty) {
            break;
        }
        let own = batches.swap_remove(processes.rank());
        let found = if own.is_empty() { vec![] } else { measure(own)? };
        for phrase in processes.gather_numbers_at_main(&found)?.iter().flat_map(|of_rank| of_rank.chunks(NUMBERS)) {
            let (half, overlaps) = (phrase[0] as usize, phrase[1..].chunks(2));
            for (sums, found) in halves[half].iter_mut().zip(overlaps) {
                sums.add(found[0] as u64, found[1] as u64);
            }
            counts[half] += 1;
        }
        progress(counts[0] + counts[1]);
    }
    if !turns.is_main() {
        return Ok(None);
    }
    if counts.contains(&0) {
        return Err(Error::file(file, "needs phrases of at least two images: one half picks the threshold"));
    }
    let best = (0..THRESHOLDS).rev().max_by(|a, b| halves[0][*a].iou.total_cmp(&halves[0][*b].iou)).unwrap_or(0);
    let OverlapSums { intersection, union, iou, found } = halves[1][best];
    let share = |count: u64| count as f64 / counts[1] as f64;
    Ok(Some(ReferringScores {
        threshold: threshold(best),
        oiou: intersection as f64 / union as f64,
        miou: iou / counts[1] as f64,
        precision_at_50: share(found[0]),
        precision_at_70: share(found[1]),
        precision_at_90: share(found[2]),
        phrases: counts[1],
        phrases_for_threshold: counts[0],
    }))
}

fn threshold(index: usize) -> f64 {
    (index + 1) as f64 / (THRESHOLDS + 1) as f64
}

impl OverlapSums {
    fn add(&mut self, intersection: u64, union: u64) {
        let iou = intersection as f64 / union as f64;
        self.intersection += intersection;
        self.union += union;
        self.iou += iou;
        self.found.iter_mut().zip(FOUND).for_each(|(found, least)| *found += u64::from(iou >= least));
    }
}

/// Intersection and union, in pixels, of `map` at each threshold with the non-empty mask.
fn overlaps(map: &[f32], (rows, columns): (usize, usize), mask: &RunLengths) -> Vec<(u64, u64)> {
    let (least, most) = map.iter().fold((f32::MAX, f32::MIN), |(least, most), v| (least.min(*v), most.max(*v)));
    // A constant map stays constant.
    let range = if most > least { most - least } else { 1.0 };
    let map: Vec<f32> = map.iter().map(|value| (value - least) / range).collect();
    let limits: [f32; THRESHOLDS] = std::array::from_fn(|index| threshold(index) as f32);
    let (height, width) = (mask.height(), mask.width());
    let inside = mask.bitmap();
    let (vertical, horizontal) = (Enlarge::new(rows, height), Enlarge::new(columns, width));
    let mut enlarged = Rows::new(&map, &vertical, &horizontal);
    // Histograms of the number of thresholds that a pixel reaches: of all pixels, and of those in the mask.
    let mut reached = [[0u64; 2]; THRESHOLDS + 1];
    let mut row = vec![0f32; width];
    for y in 0..height {
        enlarged.row(y, &mut row);
        for (value, inside) in row.iter().zip(&inside[y * width..]) {
            let level = limits.partition_point(|limit| limit <= value);
            reached[level][0] += 1;
            reached[level][1] += u64::from(*inside);
        }
    }
    let area = mask.area();
    (0..THRESHOLDS)
        .map(|index| {
            let above = |which: usize| reached[index + 1..].iter().map(|level| level[which]).sum::<u64>();
            (above(1), area + above(0) - above(1))
        })
        .collect()
}

/// A phrase after its image's name.
type NamedPhrase = (String, Phrase);

/// Iterates over the file's lines, grouped by consecutive images.
struct PhraseReader {
    phrases: Peekable<Box<dyn Iterator<Item = Result<NamedPhrase>>>>,
    images: PathBuf,
    /// Images seen, by name.
    numbers: HashMap<String, usize>,
    limit: usize,
}

impl PhraseReader {
    fn open(file: &Path, images: &Path, limit: Option<usize>) -> Result<Self> {
        let reader = patience::open(file).map_err(|problem| Error::file(file, problem))?;
        let (reader, meter) = RECORD.metered(reader);
        let file = file.to_owned();
        let phrases = (1..).zip(BufReader::new(reader).lines()).filter_map(move |(line, text)| {
            meter.reset();
            let phrase = match text {
                Ok(text) if text.trim().is_empty() => return None,
                Ok(text) => parse(&text, line),
                Err(problem) => Err(problem.to_string()),
            };
            Some(phrase.map_err(|problem| Error::file(&file, format!("line {line}: {problem}"))))
        });
        let phrases: Box<dyn Iterator<Item = _>> = Box::new(phrases);
        let (phrases, limit) = (phrases.peekable(), limit.unwrap_or(usize::MAX));
        Ok(Self { phrases, images: images.to_owned(), numbers: HashMap::new(), limit })
    }
}

/// The image's name and the phrase of a line.
fn parse(text: &str, line: usize) -> Result<NamedPhrase, String> {
    let PhraseRecord { image, phrase, mask } = serde_json::from_str(text).map_err(|problem| problem.to_string())?;
    plain_name::check(&image)?;
    let mask = mask.check()?;
    if mask.area() == 0 {
        return Err("the mask is empty".into());
    }
    Ok((image, Phrase { line, text: phrase, mask }))
}

impl Iterator for PhraseReader {
    type Item = Result<ImagePhrases>;

    fn next(&mut self) -> Option<Result<ImagePhrases>> {
        // Images beyond the limit are skipped: phrases of earlier images may follow.
        loop {
            let (name, first) = match self.phrases.next()? {
                Ok(phrase) => phrase,
                Err(problem) => return Some(Err(problem)),
            };
            let known = self.numbers.len();
            let image = *self.numbers.entry(name.clone()).or_insert(known);
            let mut group = ImagePhrases { image, path: self.images.join(&name), phrases: vec![first] };
            let belongs = |next: &Result<NamedPhrase>| next.as_ref().map_or(true, |(image, _)| *image == name);
            while let Some(next) = self.phrases.next_if(belongs) {
                match next {
                    Ok((_, phrase)) => group.phrases.push(phrase),
                    Err(problem) => return Some(Err(problem)),
                }
            }
            if image < self.limit {
                return Some(Ok(group));
            }
        }
    }
}

impl ImagePhrases {
    /// Reads the image; its masks must have its size, and are turned with it where they have that of the stored pixels.
    fn read(&mut self, file: &Path) -> Result<RgbImage> {
        let (image, header) = read_with_header(&self.path)?;
        for Phrase { line, mask, .. } in &mut self.phrases {
            match header.turns_mask((mask.width(), mask.height())) {
                Some(false) => (),
                Some(true) => *mask = mask.upright(header.orientation).map_err(|e| Error::file(file, e))?,
                None => {
                    let (found, path) = (format!("{}×{}", mask.width(), mask.height()), self.path.display());
                    let (width, height) = header.size;
                    let problem = format!("line {line}: the mask is {found}, but {path} has {width}×{height}");
                    return Err(Error::file(file, problem));
                }
            }
        }
        Ok(image)
    }

    fn prompts(&self, encoders: &TextEncoders, file: &Path) -> Result<Vec<Prompt>> {
        let prompt = |(place, phrase): (u16, &Phrase)| {
            let (tokens, room) = (encoders.count_tokens(&phrase.text)?, encoders.text_places());
            if !(1..=room.len()).contains(&tokens) {
                let (line, most) = (phrase.line, room.len());
                let problem = format!("line {line}: the phrase is {tokens} tokens, expected 1 to {most}");
                return Err(Error::file(file, problem));
            }
            let tokens = room.start..room.start + tokens;
            Ok(Prompt { text: phrase.text.clone(), places: vec![(place, tokens)] })
        };
        (0..).zip(&self.phrases).map(prompt).collect()
    }
}
