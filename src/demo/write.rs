//! Writes scenes to a folder: as SA-1B shards, and as images, captions, label maps and a class list.
use super::draw::Drawer;
use super::{SceneOptions, Split, class_names};
use crate::config::ScenesConfig;
use crate::data::codec::rle::RunLengths;
use crate::distributed::Collective;
use crate::system::error::{Error, Result};
use crate::system::limits::STATE;
use crate::system::output_folder::Lock;
use crate::system::paths::{exists, is_folder};
use crate::system::progress::Progress;
use crate::system::whole_file::{Aside, folder_of, sweep_beside};
use image::codecs::jpeg::JpegEncoder;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Scenes in a shard.
const SHARD: u64 = 5000;
/// Scenes drawn in parallel before writing; bounds memory.
const CHUNK: u64 = 500;
const JPEG_QUALITY: u8 = 95;
/// The file that records the options of the folder's scenes.
const RECORD: &str = "scenes.json";
/// Raised whenever the same seed draws other scenes.
const VERSION: u32 = 1;
/// SA-1B's quality scores of a mask; drawn masks are exact.
const CERTAIN: f64 = 1.0;

/// Writes `count` scenes to the folder `out` if that is missing or empty; otherwise, once no other process draws it, checks
/// that it holds these scenes. Returns whether they existed. The folder appears complete or not at all.
///
/// `out/shards/scenes_000000.tar`, … hold `KEY.jpg` and `KEY.json` as in SA-1B, with the class of each annotation as
/// `category`. `out/images/KEY.jpg`, `out/labels/KEY.png` and `out/captions.json` hold these scenes as files, and
/// `out/classes.json` names the labels. `progress` receives the number of scenes written.
///
/// # Errors
/// `Error::Usage` if `out` holds something else; otherwise, writing failed.
pub fn write_missing(out: &Path, count: u64, options: SceneOptions, progress: impl FnMut(u64)) -> Result<bool> {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let lock = folder_of(out).join(format!(".{name}.lock"));
    // A lock file means that another process is drawing the folder, or was killed and left a temporary folder.
    if !is_there(out)? || exists(&lock)? {
        let drawer = Drawer::new(options)?;
        let waiting = || tracing::info!("another program is drawing {}; waiting for it", out.display());
        let _lock = Lock::wait(&lock, waiting)?;
        sweep_beside(out)?;
        if !is_there(out)? {
            draw(out, count, &drawer, progress)?;
            return Ok(false);
        }
    }
    let file = out.join(RECORD);
    let text = match STATE.read(&file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::Usage(format!("{} exists already and is not empty", out.display())));
        }
        text => text.map_err(|e| Error::file(&file, e))?,
    };
    let found: Value = serde_json::from_slice(&text).map_err(|e| Error::file(&file, e))?;
    let wanted = record(count, options);
    if found != wanted {
        return Err(Error::Usage(format!(
            "{} holds other scenes ({found}) than are asked for ({wanted}); remove it, or name another folder",
            out.display()
        )));
    }
    Ok(true)
}

/// Whether `out` exists and is not empty. It is complete then, since folders are renamed into place.
fn is_there(out: &Path) -> Result<bool> {
    match is_folder(out)? {
        true => Ok(std::fs::read_dir(out).map_err(|e| Error::file(out, e))?.next().is_some()),
        false => exists(out),
    }
}

fn draw(out: &Path, count: u64, drawer: &Drawer, mut progress: impl FnMut(u64)) -> Result<()> {
    let failed = |e: std::io::Error| Error::file(out, format!("cannot write: {e}"));
    let aside = Aside::beside(out).map_err(failed)?;
    let folder = aside.path();
    ["shards", "images", "labels"]
        .into_iter()
        .try_for_each(|part| std::fs::create_dir(folder.join(part)))
        .map_err(failed)?;
    let mut captions = Map::new();
    for first in (0..count).step_by(SHARD as usize) {
        let numbers = first..count.min(first + SHARD);
        write_shard(folder, first / SHARD, numbers, drawer, &mut captions, &mut progress)?;
    }
    save_json(&folder.join("captions.json"), &captions)?;
    save_json(&folder.join("classes.json"), &class_names())?;
    save_json(&folder.join(RECORD), &record(count, drawer.options))?;
    aside.persist(out).map_err(failed)
}

fn record(count: u64, options: SceneOptions) -> Value {
    let SceneOptions { seed, split, size } = options;
    json!({"version": VERSION, "count": count, "seed": seed, "split": split.to_string(), "size": size})
}

/// Draws the missing sets of scenes at rank 0, while the other processes wait; takes seconds.
///
/// # Errors
/// A set exists but holds other scenes (`Error::Usage`), or cannot be written.
pub fn draw_missing(config: &ScenesConfig, processes: &dyn Collective) -> Result<()> {
    for set in config.sets().iter().filter(|_| processes.is_main()) {
        let split = if set.held_out { Split::Val } else { Split::Train };
        let options = SceneOptions { seed: set.seed, split, size: config.size };
        let mut progress = None;
        write_missing(&set.folder, set.count, options, |done| {
            let progress = progress.get_or_insert_with(|| Progress::new("scene", 0, set.count));
            progress.update(done, &set.folder.display().to_string());
        })?;
    }
    processes.barrier()
}

fn write_shard(
    folder: &Path,
    shard: u64,
    numbers: std::ops::Range<u64>,
    drawer: &Drawer,
    captions: &mut Map<String, Value>,
    progress: &mut impl FnMut(u64),
) -> Result<()> {
    let path = folder.join(format!("shards/scenes_{shard:06}.tar"));
    let failed = |e: std::io::Error| Error::file(&path, format!("cannot write: {e}"));
    let mut tar = tar::Builder::new(BufWriter::new(File::create(&path).map_err(failed)?));
    for first in numbers.clone().step_by(CHUNK as usize) {
        let chunk = first..numbers.end.min(first + CHUNK);
        let encode = |number: u64| EncodedScene::new(number, drawer);
        let scenes: Vec<EncodedScene> = chunk.into_par_iter().map(encode).collect::<Result<_>>()?;
        let done = first + scenes.len() as u64;
        for scene in scenes {
            append(&mut tar, &format!("{}.jpg", scene.key), &scene.jpeg).map_err(failed)?;
            append(&mut tar, &format!("{}.json", scene.key), &scene.annotations).map_err(failed)?;
            save(&folder.join(format!("images/{}.jpg", scene.key)), &scene.jpeg)?;
            save(&folder.join(format!("labels/{}.png", scene.key)), &scene.labels)?;
            captions.insert(scene.key, scene.caption.into());
        }
        progress(done);
    }
    tar.into_inner().and_then(|mut file| file.flush()).map_err(failed)
}

fn append(tar: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, bytes)
}

fn save(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|e| Error::file(path, format!("cannot write: {e}")))
}

fn save_json(path: &Path, value: &impl Serialize) -> Result<()> {
    save(path, &serde_json::to_vec_pretty(value).map_err(|e| Error::Failed(e.to_string()))?)
}

/// The bytes of a scene's files.
struct EncodedScene {
    key: String,
    caption: String,
    jpeg: Vec<u8>,
    annotations: Vec<u8>,
    labels: Vec<u8>,
}

impl EncodedScene {
    fn new(number: u64, drawer: &Drawer) -> Result<Self> {
        let SceneOptions { split, seed, size } = drawer.options;
        let scene = drawer.draw(number)?;
        let key = format!("{split}_{seed}_{number:06}");
        let mut jpeg = vec![];
        JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY)
            .encode_image(&scene.image)
            .map_err(|e| Error::Failed(format!("scene {key}: {e}")))?;
        let annotations = annotations(&key, number, size, &scene.labels)?;
        let labels = label_map(size, &scene.labels).map_err(|e| Error::Failed(format!("scene {key}: {e}")))?;
        Ok(Self { key, caption: scene.caption, jpeg, annotations, labels })
    }
}

/// SA-1B's JSON of a scene: one annotation for each class, by ascending label.
fn annotations(key: &str, number: u64, size: usize, labels: &[u8]) -> Result<Vec<u8>> {
    let names = class_names();
    let mut annotations = vec![];
    for (label, name) in names.iter().enumerate() {
        if !labels.contains(&(label as u8)) {
            continue;
        }
        let mask: Vec<bool> = labels.iter().map(|&at| usize::from(at) == label).collect();
        let inside = || mask.iter().enumerate().filter_map(|(i, &inside)| inside.then_some((i % size, i / size)));
        let (Some(left), Some(top)) = (inside().map(|p| p.0).min(), inside().map(|p| p.1).min()) else { continue };
        let (right, bottom) = inside().fold((left, top), |(right, bottom), (x, y)| (right.max(x), bottom.max(y)));
        let runs = RunLengths::encode(size, size, &mask).map_err(|e| Error::Failed(format!("scene {key}: {e}")))?;
        annotations.push(json!({
            "id": number * 100 + label as u64,
            "category": name,
            "segmentation": {"size": [size, size], "counts": runs.to_text()},
            "area": runs.area(),
            "bbox": [left, top, right - left + 1, bottom - top + 1],
            "predicted_iou": CERTAIN,
            "stability_score": CERTAIN,
            "crop_box": [0, 0, size, size],
            "point_coords": [[left, top]],
        }));
    }
    let image = json!({"image_id": number, "width": size, "height": size, "file_name": format!("{key}.jpg")});
    serde_json::to_vec(&json!({"image": image, "annotations": annotations})).map_err(|e| Error::Failed(e.to_string()))
}

/// A grey PNG whose pixel values are the labels.
fn label_map(size: usize, labels: &[u8]) -> std::result::Result<Vec<u8>, png::EncodingError> {
    let mut file = vec![];
    let mut encoder = png::Encoder::new(&mut file, size as u32, size as u32);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(labels)?;
    writer.finish()?;
    Ok(file)
}
