//! What a file may become in memory, and why so much. All limits on input stand here; they are checked before anything
//! is allocated, on what it will be and not on how long the file is: bytes of a file may stand for a thousand times as many.
//!
//! Together they keep a command that meets one hostile file below 2 GB; every thread that decodes may meet one. Models,
//! adapters and checkpoints have no limit of their own: their tensors take what their files do, which is checked against
//! the header and the configuration.
use crate::system::allocator::handled;
use crate::system::patience;
use std::cell::Cell;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

/// The most that one thing may take.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// What it is, for the error.
    what: &'static str,
    /// The most bytes.
    pub bytes: u64,
}

const fn limit(what: &'static str, bytes: u64) -> Limit {
    Limit { what, bytes }
}

/// A photograph while it is decoded: what the decoder yields and the RGB made of it, or 12 bytes a pixel for a JPEG's
/// coefficients and pixels. So every picture that Pillow takes without a warning (89 million pixels) passes.
pub const PHOTOGRAPH: Limit = limit("a photograph", 1 << 30);
/// Pixels of a picture or a label map; Pillow, too, refuses more (`2 · MAX_IMAGE_PIXELS`). What is computed at the
/// size of a picture takes up to 4 bytes a pixel.
pub const PIXELS: u64 = 178_956_970;
/// Sides of a picture: a JPEG's have at most so many pixels.
pub const SIDE: u64 = 65_535;
/// A decoded label map, or the labels of a MATLAB matrix as 32-bit numbers.
pub const LABEL_MAP: Limit = limit("a label map", 512 << 20);
/// What a PNG holds besides its pixels (colour profiles, texts), and a row of them: the PNG library's own limit.
pub const PNG_EXTRAS: usize = 64 << 20;
/// An image file: as many bytes as the largest picture's pixels would take uncompressed.
pub const IMAGE_FILE: Limit = limit("an image file", 512 << 20);
/// A MATLAB file, before anything in it is inflated.
pub const MATLAB_FILE: Limit = limit("a MATLAB file", 512 << 20);
/// JSON in memory takes up to 16 times its length; SA-1B's annotations of an image take 0.1 MB, the longest a few.
pub const ANNOTATIONS: Limit = limit("an image's annotations", 32 << 20);
/// A caption that stands in a file of its own; a text encoder reads less than a hundred of its words.
pub const CAPTION: Limit = limit("a caption", 1 << 20);
/// One record of a file that is read record by record: captions, panoptic annotations, phrases.
pub const RECORD: Limit = limit("one record", 16 << 20);
/// Class names: a list of names takes kilobytes.
pub const CLASSES: Limit = limit("a list of classes", 4 << 20);
/// The names of a data set's images: a million take 20 MB.
pub const LIST: Limit = limit("a list of images", 128 << 20);
/// A configuration in TOML, of a run or of a data set; those that ship take 4 kB.
pub const CONFIG: Limit = limit("a configuration", 4 << 20);
/// A model's configuration, index of shards or tokenizer; the largest that T5 and CLIP have takes 4 MB.
pub const MODEL_JSON: Limit = limit("a model's JSON or text file", 32 << 20);
/// A run's or a folder's own record of what it holds (`state.json`, `generation.json`).
pub const STATE: Limit = limit("a record of a run", 32 << 20);
/// A run's list of the files that it is trained on: 40 bytes each, so 25 million.
pub const DATA_RECORD: Limit = limit("a list of a run's data", 1 << 30);
/// The header of a safetensors file: 130 bytes a tensor, so half a million tensors, each of which takes ten times that
/// in memory. Models have two thousand; a cache's shards have most.
pub const TENSOR_HEADER: Limit = limit("a safetensors header", 64 << 20);
/// The header of a GGUF file; that of a text encoder has its vocabulary of up to 150 000 tokens, 10 MB.
pub const GGUF_HEADER: Limit = limit("a GGUF header", 64 << 20);
/// Entries of a cache's shard, whose header then stays within [`TENSOR_HEADER`].
pub const CACHE_ENTRIES: usize = 1 << 17;
/// A long name or extension header in a tar file. Paths have 4 KiB at most, extended attributes 64 KiB.
pub const TAR_EXTENSION: u64 = 64 << 10;
/// How far the next readable header of a tar file is looked for behind a damaged one: farther than any sample is long.
pub const TAR_SEARCH: u64 = 256 << 20;
/// The footer of a Parquet file, which describes its columns.
pub const PARQUET_FOOTER: Limit = limit("a Parquet footer", 16 << 20);
/// How deep its columns may be nested; those that are read are not nested at all.
pub const PARQUET_DEPTH: usize = 64;
/// A page of a column, uncompressed; writers make pages of one megabyte.
pub const PARQUET_PAGE: Limit = limit("a page of a column", 256 << 20);
/// A column within one row group of a Parquet file, uncompressed.
pub const PARQUET_COLUMN: Limit = limit("a column of a row group", 512 << 20);
/// A `.npz` file with statistics; Inception's 2048 features take 33 MB.
pub const STATISTICS_FILE: Limit = limit("a file of statistics", 1 << 30);
/// Any one size that a model's configuration names: of layers, vocabularies, positions. Products of two stay whole
/// numbers, and what is allocated by one alone stays below a gigabyte.
pub const MODEL_SIZE: usize = 1 << 20;

impl Limit {
    /// # Errors
    /// Says what it would become, where that is more than it may.
    pub fn check(self, bytes: u64) -> Result<(), String> {
        match bytes <= self.bytes {
            true => Ok(()),
            false => Err(self.exceeded(&format!("would take {}", readable(bytes)))),
        }
    }

    fn exceeded(self, found: &str) -> String {
        format!("{found} in memory, more than the {} that {} may take", readable(self.bytes), self.what)
    }

    /// A file as it is, patiently read.
    ///
    /// # Errors
    /// It cannot be read, or is longer than the limit; then it was not read.
    pub fn read(self, file: &Path) -> io::Result<Vec<u8>> {
        let too_long = |problem| io::Error::new(io::ErrorKind::InvalidData, problem);
        let mut reader = patience::open(file)?;
        let length = patience::patiently(|| reader.0.metadata())?.len();
        self.check(length).map_err(too_long)?;
        let mut bytes = room(length as usize + 1)?;
        // What is no plain file has no length.
        reader.by_ref().take(self.bytes + 1).read_to_end(&mut bytes)?;
        self.check(bytes.len() as u64).map_err(too_long)?;
        Ok(bytes)
    }

    /// Reads a text file.
    ///
    /// # Errors
    /// As [`read`](Self::read), and where it is not UTF-8.
    pub fn read_text(self, file: &Path) -> io::Result<String> {
        let invalid = |_| io::Error::new(io::ErrorKind::InvalidData, "stream did not contain valid UTF-8");
        String::from_utf8(self.read(file)?).map_err(invalid)
    }

    /// A reader of a file of many records, none of which may be longer than this, and its meter, which is to be told of
    /// each record's end.
    pub fn metered<R: Read>(self, inner: R) -> (Metered<R>, Meter) {
        let meter = Meter::default();
        (Metered { inner, limit: self, meter: meter.clone() }, meter)
    }
}

/// Room for so many bytes to read into, none of which is there yet.
///
/// # Errors
/// The machine has not so much memory.
fn room(length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let refused = || format!("needs {} of memory at once, more than there is", readable(length as u64));
    let reserved = handled(|| bytes.try_reserve_exact(length));
    reserved.map_err(|_| io::Error::new(io::ErrorKind::OutOfMemory, refused()))?;
    Ok(bytes)
}

/// So many bytes, all zero.
///
/// # Errors
/// The memory is refused.
pub fn buffer(length: usize) -> io::Result<Vec<u8>> {
    // Asked for first, for a refusal is an error; zeros asked for as such cost nothing, the system has them.
    drop(room(length)?);
    Ok(vec![0; length])
}

/// Whether a picture of so many pixels, which takes `bytes` while it is decoded, may be decoded.
///
/// # Errors
/// Says what it would become.
pub fn check_picture((width, height): (u64, u64), bytes: Option<u64>, limit: Limit) -> Result<(), String> {
    let size = format!("{width}×{height} pixels");
    if width.max(height) > SIDE {
        return Err(format!("{size}, more than the {SIDE} that a side of {} may have", limit.what));
    }
    match (width.checked_mul(height).filter(|pixels| *pixels <= PIXELS), bytes) {
        (Some(_), Some(bytes)) => limit.check(bytes).map_err(|problem| format!("{size}: {problem}")),
        _ => Err(format!("{size}, more than the {PIXELS} that {} may have", limit.what)),
    }
}

/// Counts the bytes of a record.
#[derive(Clone, Default)]
pub struct Meter {
    read: Rc<Cell<u64>>,
    paused: Rc<Cell<bool>>,
}

impl Meter {
    /// A record has ended.
    pub fn reset(&self) {
        self.read.set(0);
    }

    /// Nothing is kept of what `skip` reads, so its length does not matter.
    pub fn unmetered<T>(&self, skip: impl FnOnce() -> T) -> T {
        self.paused.set(true);
        let skipped = skip();
        self.paused.set(false);
        self.reset();
        skipped
    }
}

/// See [`Limit::metered`].
pub struct Metered<R> {
    inner: R,
    limit: Limit,
    meter: Meter,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(bytes)?;
        let read = self.meter.read.get() + count as u64;
        self.meter.read.set(read);
        // A block may hold the record's end; what is certain is that it began before the block.
        if read > self.limit.bytes + bytes.len() as u64 && !self.meter.paused.get() {
            let problem = self.limit.exceeded(&format!("would take more than {}", readable(self.limit.bytes)));
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        Ok(count)
    }
}

/// A number of bytes for people.
fn readable(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{bytes} bytes"),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    #[test]
    fn what_would_be_too_much_is_named_with_its_limit() {
        assert_eq!(CAPTION.check(1 << 20), Ok(()));
        let problem = LABEL_MAP.check(4_700_000_000).unwrap_err();
        assert_eq!(problem, "would take 4.7 GB in memory, more than the 536.9 MB that a label map may take");
        assert!(check_picture((9000, 9000), Some(1 << 20), PHOTOGRAPH).is_ok());
        let problem = check_picture((20_000, 20_000), None, PHOTOGRAPH).unwrap_err();
        assert!(problem.contains("more than the 178956970 that a photograph may have"), "{problem}");
        assert!(check_picture((70_000, 1), Some(1), PHOTOGRAPH).is_err());
    }

    #[test]
    fn files_are_read_up_to_the_limit_even_without_a_length() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        std::fs::write(&file, vec![b'x'; 1 << 20]).unwrap();
        assert_eq!(CAPTION.read_text(&file).unwrap().len(), 1 << 20);
        std::fs::File::options().append(true).open(&file).unwrap().set_len(1 << 40).unwrap();
        assert!(CAPTION.read(&file).unwrap_err().to_string().contains("1099.5 GB in memory"));
        #[cfg(unix)]
        assert!(CAPTION.read(Path::new("/dev/zero")).unwrap_err().to_string().contains("a caption may take"));
    }

    #[test]
    fn long_files_of_short_records_pass_and_a_long_record_does_not() {
        let whole = vec![b'x'; 5 << 20];
        let small = limit("one record", 1 << 20);
        let read = |record: usize| -> io::Result<()> {
            let (metered, meter) = small.metered(&whole[..]);
            let mut reader = BufReader::with_capacity(4096, metered);
            loop {
                let mut left = record;
                while left > 0 {
                    let taken = reader.fill_buf()?.len().min(left);
                    if taken == 0 {
                        return Ok(());
                    }
                    reader.consume(taken);
                    left -= taken;
                }
                meter.reset();
            }
        };
        assert!(read(1 << 20).is_ok());
        assert!(read(2 << 20).unwrap_err().to_string().contains("more than 1.0 MB in memory"));
        let (mut metered, meter) = small.metered(&whole[..]);
        assert!(meter.unmetered(|| metered.read_to_end(&mut Vec::new())).is_ok());
    }
}
