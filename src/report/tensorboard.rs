//! TensorBoard event files: scalars and images by step, for `tensorboard --logdir RUN`.
//!
//! A file is a series of TFRecords, each a serialized `Event` (tensorboard/compat/proto/event.proto, summary.proto).
//! The few protocol-buffer fields needed are encoded by hand.
use super::metrics::{StepMetrics, ValidationScores};
use super::validation::ValidationPictures;
use crate::system::error::{Error, Result};
use image::RgbImage;
use image::codecs::png::PngEncoder;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// `file_version` of the first event.
const VERSION: &[u8] = b"brain.Event:2";
/// `SessionLog.START`: TensorBoard discards earlier files' events from this step on.
const START: u64 = 1;
/// Added to a masked checksum.
const MASK: u32 = 0xa282_ead8;

/// An event file, created when its first value is written.
pub struct EventFile {
    folder: PathBuf,
    /// The step that the run resumes after.
    after: u64,
    open: Option<OpenFile>,
}

struct OpenFile {
    path: PathBuf,
    file: File,
}

/// A value of one step.
pub enum SummaryValue<'a> {
    Scalar(f32),
    Image(&'a RgbImage),
}

impl EventFile {
    /// A new file in `folder`; it invalidates steps above `step` in the folder's earlier files.
    pub fn new(folder: &Path, step: u64) -> Self {
        Self { folder: folder.to_owned(), after: step, open: None }
    }

    /// Writes the values of a step by tag.
    ///
    /// # Errors
    /// The file cannot be written, or an image cannot be encoded.
    pub fn write(&mut self, step: u64, values: &[(&str, SummaryValue)]) -> Result<()> {
        let mut summary = vec![];
        for (tag, value) in values {
            let mut one = vec![];
            bytes(&mut one, 1, tag.as_bytes());
            match value {
                SummaryValue::Scalar(value) => {
                    key(&mut one, 2, 5);
                    one.extend(value.to_le_bytes());
                }
                SummaryValue::Image(picture) => {
                    let mut png = vec![];
                    let encoder = PngEncoder::new(&mut png);
                    picture.write_with_encoder(encoder).map_err(|e| Error::file(&self.folder, e))?;
                    let mut image = vec![];
                    number(&mut image, 1, u64::from(picture.height()));
                    number(&mut image, 2, u64::from(picture.width()));
                    // RGB.
                    number(&mut image, 3, 3);
                    bytes(&mut image, 4, &png);
                    bytes(&mut one, 4, &image);
                }
            }
            bytes(&mut summary, 1, &one);
        }
        let file = match self.open.take() {
            Some(file) => file,
            None => OpenFile::begin(&self.folder, self.after)?,
        };
        self.open.insert(file).record(&message(now(), step, 5, &summary))
    }

    /// Writes a step's metrics.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_step(&mut self, step: &StepMetrics) -> Result<()> {
        let terms = [
            ("train/loss", Some(step.loss)),
            ("train/flow", Some(step.flow)),
            ("train/align", step.align),
            ("train/focal", Some(step.focal)),
            ("train/dice", Some(step.dice)),
            ("train/grad_norm", Some(step.grad_norm)),
            ("train/lr", Some(step.lr)),
            ("train/lora_lr", step.lora_lr),
            ("train/images_per_s", Some(step.images_per_s)),
        ];
        let values: Vec<_> =
            terms.into_iter().filter_map(|(tag, value)| Some((tag, SummaryValue::Scalar(value? as f32)))).collect();
        self.write(step.step, &values)
    }

    /// Writes a validation's scores and, if given, its images, which stay in the file for good.
    ///
    /// # Errors
    /// The file cannot be written, or an image cannot be encoded.
    pub fn write_validation(
        &mut self,
        step: u64,
        scores: &ValidationScores,
        pictures: Option<&ValidationPictures>,
    ) -> Result<()> {
        let (samples, attention) = pictures.map_or((None, None), |of| (of.samples.as_ref(), of.attention.as_ref()));
        let scalar = |tag, value: Option<f64>| Some((tag, SummaryValue::Scalar(value? as f32)));
        let values = [
            scalar("validation/miou", scores.miou),
            scalar("validation/pixel_accuracy", scores.pixel_accuracy),
            scalar("validation/held_out_flow", scores.held_out_flow),
            samples.map(|picture| ("validation/samples", SummaryValue::Image(picture))),
            attention.map(|picture| ("validation/attention", SummaryValue::Image(picture))),
        ];
        self.write(step, &values.into_iter().flatten().collect::<Vec<_>>())
    }
}

impl OpenFile {
    fn begin(folder: &Path, step: u64) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::file(folder, format!("cannot write: {e}")))?;
        let begun = now();
        // TensorBoard reads files in name order; a number separates files of the same second.
        let name = |number: u32| format!("events.out.tfevents.{:010}.seg4diff.{number}", begun as u64);
        let free = (0..).map(|number| folder.join(name(number))).find(|path| !path.exists());
        let path = free.unwrap_or_else(|| folder.join(name(0)));
        let file = File::options().append(true).create(true).open(&path);
        let file = file.map_err(|e| Error::file(&path, format!("cannot write: {e}")))?;
        let mut events = Self { path, file };
        events.record(&message(begun, 0, 3, VERSION))?;
        // Written at step 0 too: a run killed before its first checkpoint restarts from there.
        let mut session = vec![];
        number(&mut session, 1, START);
        events.record(&message(begun, step + 1, 7, &session))?;
        Ok(events)
    }

    /// A TFRecord: length, masked CRC of the length, data, masked CRC of the data.
    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(checksum(&length).to_le_bytes());
        record.extend(data);
        record.extend(checksum(data).to_le_bytes());
        self.file.write_all(&record).map_err(|e| Error::file(&self.path, format!("cannot write: {e}")))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// An `Event`: wall time, step, and one more length-delimited field.
fn message(time: f64, step: u64, field: u64, content: &[u8]) -> Vec<u8> {
    let mut event = vec![];
    key(&mut event, 1, 1);
    event.extend(time.to_le_bytes());
    number(&mut event, 2, step);
    bytes(&mut event, field, content);
    event
}

/// A field's number and wire type.
fn key(out: &mut Vec<u8>, field: u64, coding: u64) {
    varint(out, field << 3 | coding);
}

fn number(out: &mut Vec<u8>, field: u64, value: u64) {
    key(out, field, 0);
    varint(out, value);
}

fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(out, field, 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// TFRecord's masked CRC-32C.
fn checksum(data: &[u8]) -> u32 {
    let crc = crc32c::crc32c(data);
    crc.rotate_right(15).wrapping_add(MASK)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The records of a file; checks lengths and checksums.
    fn records(file: &Path) -> Vec<Vec<u8>> {
        let bytes = std::fs::read(file).expect("file");
        let (mut rest, mut records) = (&bytes[..], vec![]);
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().expect("8 bytes")) as usize;
            assert_eq!(rest[8..12], checksum(&rest[..8]).to_le_bytes());
            let data = &rest[12..12 + length];
            assert_eq!(rest[12 + length..16 + length], checksum(data).to_le_bytes());
            records.push(data.to_vec());
            rest = &rest[16 + length..];
        }
        records
    }

    #[test]
    fn checksums_are_those_of_tensorflow() {
        // tensorboard.compat.tensorflow_stub.pywrap_tensorflow.masked_crc32c
        assert_eq!(checksum(b"123456789"), 3_347_755_237);
    }

    /// A run killed before its first checkpoint, and one that resumes from its newest: TensorBoard discards an earlier
    /// file's events from a session's start on (`EventAccumulator._MaybePurgeOrphanedData`).
    #[test]
    fn no_step_is_shown_twice() {
        let folder = tempfile::tempdir().expect("folder");
        for (after, last) in [(0, 3), (0, 5), (4, 7)] {
            let mut events = EventFile::new(folder.path(), after);
            (after + 1..=last)
                .for_each(|step| events.write(step, &[("a", SummaryValue::Scalar(step as f32))]).expect("write"));
        }
        let mut files: Vec<_> =
            std::fs::read_dir(folder.path()).expect("folder").map(|entry| entry.expect("entry").path()).collect();
        files.sort();
        let mut shown: Vec<u8> = vec![];
        for record in files.iter().flat_map(|file| records(file)) {
            // Time, step, then a summary or the start of a session.
            match record[9..] {
                [16, step, 42, ..] => shown.push(step),
                [16, step, 58, 2, 8, 1] => shown.retain(|earlier| *earlier < step),
                _ => assert!(record.ends_with(VERSION), "{record:?}"),
            }
        }
        assert_eq!((files.len(), shown), (3, (1..=7).collect()));
    }

    #[test]
    fn files_hold_what_was_written() {
        let folder = tempfile::tempdir().expect("folder");
        let mut first = EventFile::new(folder.path(), 0);
        assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 0);
        first.write(300, &[("a", SummaryValue::Scalar(0.5))]).expect("write");
        let mut second = EventFile::new(folder.path(), 200);
        second.write(201, &[("p", SummaryValue::Image(&RgbImage::new(3, 2)))]).expect("write");
        let paths = [first, second].map(|events| events.open.expect("written").path);
        let found = records(&paths[0]);
        assert!(found.len() == 3 && found[0].ends_with(VERSION));
        // The start of a session before step 1; step 300, then the summary: a value of 8 bytes, tag "a", 0.5.
        assert_eq!(found[1][9..], [16, 1, 58, 2, 8, 1]);
        assert_eq!(found[2][9..], [16, 172, 2, 42, 10, 10, 8, 10, 1, b'a', 21, 0, 0, 0, 63]);
        let found = records(&paths[1]);
        // Step 201 and the start of a session.
        assert_eq!(found[1][9..], [16, 201, 1, 58, 2, 8, 1]);
        assert!(found[2].windows(4).any(|bytes| bytes == b"\x89PNG"));
    }
}
