//! Made folders, and what became of them.
use crate::data_config::plain;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use seg4diff::config::{Allowed, DataConfig, DataFormat};
use seg4diff::data::{DataSet, Inventory, Loader};
use std::fs;
use std::io::Write;
use std::path::Path;

pub const WIDTH: u32 = 16;

/// A case: what lies in the folder, how it is configured, and what must come of it.
pub struct Case {
    pub name: &'static str,
    /// Files by path, separated by spaces; see [`write`].
    pub files: &'static str,
    pub change: fn(&mut DataConfig, &Path),
    pub right: Right,
}

/// What must come of a case.
pub enum Right {
    /// `key[prompt]number of masks` of every sample in order, separated by spaces.
    Samples(&'static str),
    /// As `Samples`, and these parts stand in the printed inventory.
    Said(&'static str, &'static [&'static str]),
    /// One error with all these parts.
    Error(&'static [&'static str]),
}

fn png(pixels: &[u8], colour: ExtendedColorType) -> Vec<u8> {
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes).write_image(pixels, WIDTH, WIDTH, colour).expect("png");
    bytes
}

/// A photograph; its pixels do not matter.
pub fn photograph() -> Vec<u8> {
    png(&[90; 3 * (WIDTH * WIDTH) as usize], ExtendedColorType::Rgb8)
}

/// A label map with label 5 in its left half and 7 in its right.
pub fn label_map() -> Vec<u8> {
    let pixels: Vec<u8> = (0..WIDTH * WIDTH).map(|pixel| if pixel % WIDTH < WIDTH / 2 { 5 } else { 7 }).collect();
    png(&pixels, ExtendedColorType::L8)
}

/// A mask of the left half.
pub fn mask() -> Vec<u8> {
    let pixels: Vec<u8> = (0..WIDTH * WIDTH).map(|pixel| if pixel % WIDTH < WIDTH / 2 { 255 } else { 0 }).collect();
    png(&pixels, ExtendedColorType::L8)
}

/// Writes files: what is called like a mask is a label map (with a number in its name a mask), other pictures are
/// photographs, captions hold their stem; `name=text` holds the text with spaces for underscores, `name==text` this text.
pub fn write(folder: &Path, files: &str) {
    for entry in files.split_whitespace() {
        let (path, text) = entry.split_once('=').map_or((entry, None), |(path, text)| (path, Some(text)));
        let file = folder.join(path);
        fs::create_dir_all(file.parent().expect("folder")).expect("folder");
        let name = file.file_name().expect("name").to_string_lossy().into_owned();
        let (stem, extension) = name.rsplit_once('.').unwrap_or((&name, ""));
        let is_numbered = stem.rsplit(['.', '_', 'k']).next().is_some_and(|end| end.parse::<u32>().is_ok());
        let named = path.to_lowercase();
        let is_mask =
            ["mask", "/labels/", "segmentation"].iter().any(|name| named.contains(name)) || path.starts_with("lab");
        let bytes = match (text, extension.to_lowercase().as_str()) {
            (Some(text), _) if text.starts_with('=') => {
                text[1..].replace("\\r", "\r").replace("\\n", "\n").into_bytes()
            }
            (Some(text), _) => text.replace('_', " ").replace("\\n", "\n").into_bytes(),
            (None, "txt" | "caption") => stem.as_bytes().to_vec(),
            (None, "json") => b"{}".to_vec(),
            (None, "png" | "tif" | "bmp") if is_numbered && (is_mask || stem.contains('.')) => mask(),
            (None, "png") if is_mask || ["jpg", "webp"].iter().any(|other| file.with_extension(other).exists()) => {
                label_map()
            }
            (None, "tif" | "bmp") if is_mask => label_map(),
            _ => photograph(),
        };
        fs::write(file, bytes).expect("write");
    }
}

pub fn config(folder: &Path) -> DataConfig {
    DataConfig { caption_sentences: 2, min_mask_area: 0.005, workers: 1, ..plain(DataFormat::Folder, &[folder]) }
}

/// Accepts everything that can be accepted.
pub fn allow_all(config: &mut DataConfig, _: &Path) {
    config.allow =
        vec![Allowed::CaptionsMissing, Allowed::MasksMissing, Allowed::PicturesMissing, Allowed::FilesUnread];
}

/// The printed inventory and all samples of an epoch, or the error.
pub fn outcome(config: &DataConfig) -> Result<(String, String), String> {
    let data = DataSet::open(config).map_err(|problem| problem.to_string())?;
    let inventory = Inventory::of(&data).map_err(|problem| problem.to_string())?;
    let said = inventory.to_string();
    inventory.check(&config.allow).map_err(|problem| problem.to_string())?;
    let mut loader = Loader::new(config, 0, None, false).map_err(|problem| problem.to_string())?;
    let mut samples = Vec::new();
    loop {
        let batch = loader.next_batch(1).map_err(|problem| problem.to_string())?;
        if batch.epoch > 0 {
            return Ok((said, samples.join(" ")));
        }
        let sample = &batch.samples[0];
        samples.push(format!("{}[{}]{}", sample.key, sample.prompt.replace(' ', "_"), sample.masks.len()));
    }
}

/// Makes each case's folder and compares what came of it; all that are wrong are reported together.
pub fn check(cases: &[Case]) {
    let mut wrong = Vec::new();
    for case in cases {
        let folder = tempfile::tempdir().expect("folder");
        let root = folder.path().join("data");
        fs::create_dir(&root).expect("folder");
        write(&root, case.files);
        let mut config = config(&root);
        (case.change)(&mut config, &root);
        let found = outcome(&config);
        let is_right = match (&case.right, &found) {
            (Right::Samples(right), Ok((_, samples))) => right == samples,
            (Right::Said(right, parts), Ok((said, samples))) => {
                right == samples && parts.iter().all(|part| said.contains(part))
            }
            (Right::Error(parts), Err(error)) => parts.iter().all(|part| error.contains(part)),
            _ => false,
        };
        if !is_right {
            wrong.push(format!("{}: {found:#?}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// A tar file of what lies in `folder`, which is removed; the members stand in the order of `files`.
pub fn pack(folder: &Path, files: &str, tar: &Path, compressed: bool) {
    let mut archive = tar::Builder::new(Vec::new());
    for path in files.split_whitespace().map(|entry| entry.split_once('=').map_or(entry, |(path, _)| path)) {
        let bytes = fs::read(folder.join(path)).expect("read");
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, bytes.as_slice()).expect("member");
    }
    let bytes = archive.into_inner().expect("tar");
    fs::remove_dir_all(folder).expect("remove");
    fs::create_dir_all(tar.parent().expect("folder")).expect("folder");
    if compressed {
        let mut encoder = flate2::write::GzEncoder::new(fs::File::create(tar).expect("tar"), Default::default());
        encoder.write_all(&bytes).expect("gzip");
        encoder.finish().expect("gzip");
    } else {
        fs::write(tar, bytes).expect("tar");
    }
}
