//! What was measured and drawn while the model was trained: files of the run, and a section of its page.
use super::metrics::ValidationScores;
use super::picture::{data_uri, sheet};
use super::summary::percent;
use crate::error::{Error, Result};
use crate::paths::{exists, is_file};
use crate::sample::image::{read_rgb8, write_png};
use image::RgbImage;
use maud::{Markup, html};
use std::collections::BTreeMap;
use std::path::Path;

/// The folder of a run that the pictures lie in.
const FOLDER: &str = "validation";
/// Ends of the files' names.
const KINDS: [&str; 2] = ["samples", "attention"];
/// Validations whose pictures the page shows, the first and the last among them.
const SHOWN: usize = 6;
/// Side of a picture in the sheet of samples, and how many stand in a row.
const PICTURE: u32 = 256;
const PICTURES: usize = 4;

/// Pictures of one validation.
#[derive(Clone, Debug, Default)]
pub struct ValidationPictures {
    /// What the model draws.
    pub samples: Option<RgbImage>,
    /// Where its expert looks in held-out pictures.
    pub attention: Option<RgbImage>,
}

/// Drawn pictures beside each other.
pub fn sample_sheet(images: &[RgbImage]) -> RgbImage {
    let cells: Vec<_> = (0..)
        .zip(images)
        .map(|(index, image): (u32, _)| ((index % PICTURES as u32, index / PICTURES as u32), 1, image))
        .collect();
    sheet(PICTURE, &cells)
}

impl ValidationPictures {
    /// Writes them into the run's folder.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, run: &Path, step: u64) -> Result<()> {
        for (kind, picture) in KINDS.iter().zip([&self.samples, &self.attention]) {
            if let Some(picture) = picture {
                write_png(&file(run, step, kind), picture)?;
            }
        }
        Ok(())
    }

    /// Those of the given steps that the run's folder has.
    ///
    /// # Errors
    /// One that is there cannot be read.
    pub fn read(run: &Path, steps: impl IntoIterator<Item = u64>) -> Result<BTreeMap<u64, Self>> {
        let mut found = BTreeMap::new();
        for step in steps {
            let read = |kind: &str| {
                let file = file(run, step, kind);
                if is_file(&file)? { read_rgb8(&file).map(Some) } else { Ok(None) }
            };
            found.insert(step, Self { samples: read(KINDS[0])?, attention: read(KINDS[1])? });
        }
        Ok(found)
    }

    /// Removes those of steps after `step`: the run goes on from there.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn remove_after(run: &Path, step: u64) -> Result<()> {
        let folder = run.join(FOLDER);
        if !exists(&folder)? {
            return Ok(());
        }
        let entries = std::fs::read_dir(&folder).map_err(|e| Error::file(&folder, e))?;
        for entry in entries {
            let path = entry.map_err(|e| Error::file(&folder, e))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let of = name.strip_prefix("step-").and_then(|rest| rest.split('-').next()?.parse::<u64>().ok());
            if of.is_some_and(|of| of > step) {
                std::fs::remove_file(&path).map_err(|e| Error::file(&path, e))?;
            }
        }
        Ok(())
    }
}

fn file(run: &Path, step: u64, kind: &str) -> std::path::PathBuf {
    run.join(FOLDER).join(format!("step-{step:06}-{kind}.png"))
}

/// Some of the steps that were validated: the last, and others evenly spread.
pub fn shown(steps: &[u64]) -> Vec<u64> {
    let Some(last) = steps.len().checked_sub(1) else { return vec![] };
    let count = SHOWN.min(steps.len());
    let place = |index: usize| if count == 1 { last } else { index * last / (count - 1) };
    (0..count).map(|index| steps[place(index)]).collect()
}

/// A figure for each validation that is shown.
pub(super) fn figures(
    pictures: &BTreeMap<u64, ValidationPictures>,
    scores: &[(u64, &ValidationScores)],
) -> Result<Markup> {
    let mut figures = vec![];
    for (step, ValidationPictures { samples, attention }) in pictures {
        let line = scores.iter().find(|(of, _)| of == step).map(|(_, scores)| scores.to_string()).unwrap_or_default();
        let uri = |picture: &Option<RgbImage>| picture.as_ref().map(data_uri).transpose();
        let (samples, attention) = (uri(samples)?, uri(attention)?);
        figures.push(html! {
            figure.validation {
                figcaption { "Step " (step) @if !line.is_empty() { ": " (line) } }
                div.pair {
                    @if let Some(attention) = &attention { img src=(attention) alt={ "attention of the expert at step " (step) }; }
                    @if let Some(samples) = &samples { img src=(samples) alt={ "drawn at step " (step) }; }
                }
            }
        });
    }
    Ok(html! { @for figure in figures { (figure) } })
}

impl std::fmt::Display for ValidationScores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [
            self.miou.map(|miou| format!("mIoU {}", percent(miou))),
            self.pixel_accuracy.map(|accuracy| format!("pixel accuracy {}", percent(accuracy))),
            self.held_out_flow.map(|flow| format!("held-out flow loss {flow:.4}")),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_and_last_are_shown() {
        assert_eq!(shown(&[]), [0u64; 0]);
        assert_eq!(shown(&[5]), [5]);
        assert_eq!(shown(&[5, 10]), [5, 10]);
        let many: Vec<u64> = (1..=100).collect();
        let found = shown(&many);
        assert_eq!((found.len(), found[0], found[SHOWN - 1]), (SHOWN, 1, 100));
    }

    #[test]
    fn pictures_of_later_steps_are_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let pictures = ValidationPictures { samples: Some(RgbImage::new(2, 2)), attention: None };
        for step in [5, 10, 15] {
            pictures.write(folder.path(), step).expect("write");
        }
        ValidationPictures::remove_after(folder.path(), 10).expect("remove");
        let left = ValidationPictures::read(folder.path(), [5, 10, 15]).expect("read");
        assert_eq!(left.values().map(|p| p.samples.is_some()).collect::<Vec<_>>(), [true, true, false]);
    }
}
