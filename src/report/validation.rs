//! Validation during training: scores and pictures as files of the run, and as a section of its page.
use super::metrics::ValidationScores;
use super::picture::{data_uri, sheet_of_rows};
use super::summary::percent;
use crate::sample::image::{read_rgb8, write_png};
use crate::system::error::Result;
use crate::system::paths::is_file;
use crate::system::whole_file::{entries, remove_if_there};
use image::RgbImage;
use maud::{Markup, html};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The run's folder of validation pictures.
const FOLDER: &str = "validation";
/// Suffixes of the files' names.
const KINDS: [&str; 2] = ["samples", "attention"];
/// Number of validations whose pictures the page shows, including the first and last.
const SHOWN: usize = 6;
/// Side of a picture in the sheet of samples, and number of pictures in a row.
const PICTURE: u32 = 256;
const PICTURES: usize = 4;

/// Pictures of one validation.
#[derive(Clone, Debug, Default)]
pub struct ValidationPictures {
    /// Images drawn by the model.
    pub samples: Option<RgbImage>,
    /// The expert block's attention on held-out pictures.
    pub attention: Option<RgbImage>,
}

/// A sheet of the images.
pub fn sample_sheet(images: &[RgbImage]) -> RgbImage {
    sheet_of_rows(PICTURE, images.chunks(PICTURES))
}

impl ValidationPictures {
    /// Writes the pictures into the run's folder, and removes earlier ones that are not to be kept.
    ///
    /// # Errors
    /// A file cannot be written or removed.
    pub fn write(&self, run: &Path, step: u64, kept: KeptPictures) -> Result<()> {
        for (kind, picture) in KINDS.iter().zip([&self.samples, &self.attention]) {
            if let Some(picture) = picture {
                write_png(&file(run, step, kind), picture)?;
            }
        }
        Self::thin(run, kept)
    }

    /// Removes pictures that are not to be kept, except the newest.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn thin(run: &Path, kept: KeptPictures) -> Result<()> {
        let files = files(run)?;
        let newest = files.iter().map(|(step, _)| *step).max();
        let old = files.iter().filter(|(step, _)| Some(*step) != newest && !kept.contains(*step));
        old.into_iter().try_for_each(|(_, file)| remove_if_there(file))
    }

    /// The steps with pictures in the run's folder.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn steps(run: &Path) -> Result<BTreeSet<u64>> {
        Ok(files(run)?.into_iter().map(|(step, _)| step).collect())
    }

    /// Reads the pictures of the given steps, as far as they exist.
    ///
    /// # Errors
    /// An existing file cannot be read.
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

    /// Removes the pictures of steps after `step`, from which the run resumes.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove_after(run: &Path, step: u64) -> Result<()> {
        let later = files(run)?.into_iter().filter(|(of, _)| *of > step);
        later.into_iter().try_for_each(|(_, file)| remove_if_there(&file))
    }
}

/// The picture files in the run's folder, with their steps.
fn files(run: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let step_of = |path: &Path| {
        let name = path.file_name()?.to_str()?.strip_prefix("step-")?;
        name.split('-').next()?.parse().ok()
    };
    Ok(entries(&run.join(FOLDER))?.into_iter().filter_map(|path| Some((step_of(&path)?, path))).collect())
}

/// The validations whose pictures a run keeps: the first, the last, and others evenly between. They are fixed from the
/// start, so that a resumed run keeps the same ones.
#[derive(Clone, Copy, Debug)]
pub struct KeptPictures {
    /// Steps between validations.
    every: u64,
    /// Number of validations of the whole run.
    validations: u64,
    /// Every `stride`-th validation is kept.
    stride: u64,
}

impl KeptPictures {
    /// Keeps at most `keep` of the validations, which happen every `every` of `steps` steps; 0 keeps all.
    pub fn new(every: u64, steps: u64, keep: u64) -> Self {
        let validations = steps / every.max(1);
        let stride = if keep == 0 { 1 } else { validations.div_ceil((keep - 1).max(1)).max(1) };
        Self { every: every.max(1), validations, stride }
    }

    /// Whether the pictures of the validation at `step` are kept.
    pub fn contains(&self, step: u64) -> bool {
        let number = step / self.every;
        number == self.validations || number.saturating_sub(1).is_multiple_of(self.stride)
    }
}

fn file(run: &Path, step: u64, kind: &str) -> PathBuf {
    run.join(FOLDER).join(format!("step-{step:06}-{kind}.png"))
}

/// The validated steps to show: the last, and others evenly spread.
pub fn shown(steps: &[u64]) -> Vec<u64> {
    let Some(last) = steps.len().checked_sub(1) else { return vec![] };
    let count = SHOWN.min(steps.len());
    let place = |index: usize| if count == 1 { last } else { index * last / (count - 1) };
    (0..count).map(|index| steps[place(index)]).collect()
}

/// A figure for each validation shown.
pub(super) fn figures(
    pictures: &BTreeMap<u64, ValidationPictures>,
    scores: &[(u64, &ValidationScores)],
) -> Result<Markup> {
    let uri = |picture: &Option<RgbImage>| picture.as_ref().map(data_uri).transpose();
    Ok(html! {
        @for (step, ValidationPictures { samples, attention }) in pictures {
            figure.validation {
                @let line = scores.iter().find(|(of, _)| of == step).map(|(_, scores)| scores.to_string()).unwrap_or_default();
                figcaption { "Step " (step) @if !line.is_empty() { ": " (line) } }
                div.pair {
                    @if let Some(uri) = uri(attention)? { img src=(uri) alt={ "attention of the expert at step " (step) }; }
                    @if let Some(uri) = uri(samples)? { img src=(uri) alt={ "drawn at step " (step) }; }
                }
            }
        }
    })
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

    /// At most as many as asked for, including the first and the last; a run resumed in the middle ends with equal
    /// files.
    #[test]
    fn pictures_are_thinned() {
        let pictures = ValidationPictures { samples: Some(RgbImage::new(2, 2)), attention: Some(RgbImage::new(2, 2)) };
        for (validations, keep) in [(1, 2), (2, 2), (40, 2), (40, 7), (41, 10), (7, 7), (9, 0)] {
            let kept = KeptPictures::new(3, 3 * validations + 1, keep);
            let folder = tempfile::tempdir().expect("folder");
            let run = |from: u64, to: u64| {
                for number in from..=to {
                    pictures.write(folder.path(), 3 * number, kept).expect("write");
                    let steps = ValidationPictures::steps(folder.path()).expect("steps");
                    assert!(keep == 0 || steps.len() as u64 <= keep, "{validations} {keep}: {steps:?}");
                    assert!(steps.contains(&3) && steps.contains(&(3 * number)), "{steps:?}");
                }
                ValidationPictures::steps(folder.path()).expect("steps")
            };
            let all = run(1, validations);
            assert!(keep != 0 || all.len() as u64 == validations);
            ValidationPictures::remove_after(folder.path(), 3 * (validations / 2)).expect("remove");
            assert_eq!(run(validations / 2 + 1, validations), all);
        }
    }

    #[test]
    fn pictures_of_later_steps_are_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let pictures = ValidationPictures { samples: Some(RgbImage::new(2, 2)), attention: None };
        for step in [5, 10, 15] {
            pictures.write(folder.path(), step, KeptPictures::new(5, 15, 0)).expect("write");
        }
        ValidationPictures::remove_after(folder.path(), 10).expect("remove");
        let left = ValidationPictures::read(folder.path(), [5, 10, 15]).expect("read");
        assert_eq!(left.values().map(|p| p.samples.is_some()).collect::<Vec<_>>(), [true, true, false]);
    }
}
