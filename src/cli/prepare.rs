//! `prepare`: makes data sets, and caches of latents and text embeddings.
use super::mention;
use crate::config::RunConfig;
use crate::data::cache::SHARD_BYTES;
use crate::data::codec::labels::encode_labels;
use crate::data::codec::matlab::LabelMatrix;
use crate::data::sources::ade20k;
use crate::demo::{self, SceneOptions, Split};
use crate::distributed::Collective;
use crate::encode::fill;
use crate::eval::segmentation::Files;
use crate::system::error::{Error, Result};
use crate::system::limits::MATLAB_FILE;
use crate::system::output_folder::OutputFolder;
use crate::system::paths::{exists, may_be_file};
use crate::system::printable::printable_path;
use crate::system::progress::Progress;
use crate::system::whole_file::write_atomically;
use clap::{Args, Subcommand};
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// Make data to train on
#[derive(Clone, Debug, Subcommand)]
pub enum PrepareCommand {
    Scenes(ScenesArgs),
    Labels(LabelsArgs),
    Cache(CacheArgs),
}

impl PrepareCommand {
    pub fn run(&self, processes: &dyn Collective) -> Result<()> {
        match self {
            Self::Scenes(args) => scenes(args),
            Self::Labels(args) => labels(args),
            Self::Cache(args) => cache(args, processes),
        }
    }
}

const EXAMPLE: &str = "Example:
  seg4diff prepare scenes --out scenes --count 10000 --seed 1";

/// Draw the demo's scenes: SA-1B shards, and the same scenes as images, captions, label maps and class list
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLE)]
pub struct ScenesArgs {
    /// Folder for the scenes; must not hold anything yet but these scenes
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// How many scenes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub count: u64,
    /// The same seed draws the same bytes
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// train: four drawing styles; val: a fifth, which training never sees
    #[arg(long, value_enum, default_value_t = Split::Train)]
    pub split: Split,
    /// Side of a scene in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 64)]
    pub size: usize,
}

fn scenes(args: &ScenesArgs) -> Result<()> {
    let mut progress = Progress::new("scene", 0, args.count);
    let options = SceneOptions { seed: args.seed, split: args.split, size: args.size };
    let were_there = demo::write_missing(&args.out, args.count, options, |done| progress.update(done, ""))?;
    drop(progress);
    let said = if were_there { " were there" } else { "" };
    mention(&format!("{}: {} scenes{said}", printable_path(&args.out), args.count));
    Ok(())
}

const LABELS_EXAMPLE: &str = "Example:
  seg4diff prepare labels --mat trainval --out VOCdevkit/VOC2010/SegmentationContext459
  seg4diff prepare labels --ade20k ADE20K_2021_17_01/images/ADE/validation \\
    --numbers data/classes/ade20k-847-numbers.json --out ADE20K_2021_17_01/annotations847/validation";

/// Write label maps as PNG that a data set has in another form
///
/// PASCAL-Context's are MATLAB files, one an image; those of the full ADE20K release are colours. Maps that are in the
/// folder already are left as they are, so that the command can be stopped and started again.
#[derive(Args, Clone, Debug)]
#[command(after_help = LABELS_EXAMPLE)]
pub struct LabelsArgs {
    /// Folder of .mat files (level 5), each with a matrix of labels
    #[arg(long, value_name = "DIR", required_unless_present = "ade20k")]
    pub mat: Option<PathBuf>,
    /// Name of the matrix
    #[arg(long, value_name = "NAME", default_value = "LabelMap")]
    pub variable: String,
    /// Instead: a folder of the full ADE20K release, with NAME_seg.png beside NAME.jpg in its subfolders
    #[arg(long, value_name = "DIR", conflicts_with_all = ["mat", "variable"], requires = "numbers")]
    pub ade20k: Option<PathBuf>,
    /// The classes' numbers in ADE20K's index: a JSON list, a number's place being its label; what has another number
    /// gets the label 65535
    #[arg(long, value_name = "F", requires = "ade20k")]
    pub numbers: Option<PathBuf>,
    /// Folder for the label maps: NAME.png for NAME.mat or NAME_seg.png, in the same subfolders
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Files written between two updates of the progress.
const CHUNK: usize = 64;

fn labels(args: &LabelsArgs) -> Result<()> {
    match (&args.mat, &args.ade20k, &args.numbers) {
        (Some(folder), ..) => {
            write_all(&mat_files(folder)?, &args.out, |bytes| LabelMatrix::read(bytes, &args.variable))
        }
        (None, Some(folder), Some(numbers)) => {
            let numbers = ade20k::Numbers::read(numbers)?;
            let files = Files { folder: folder.clone(), suffixes: vec!["_seg.png".into()] }.find()?;
            if files.is_empty() {
                return Err(Error::file(folder, "holds no *_seg.png"));
            }
            write_all(&files.into_iter().collect::<Vec<_>>(), &args.out, |bytes| {
                numbers.labels(bytes).map(|(width, height, labels)| LabelMatrix { width, height, labels })
            })
        }
        _ => Err(Error::Usage("expected --mat, or --ade20k and --numbers".into())),
    }
}

/// The folder's .mat files, each after its stem, sorted.
fn mat_files(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let failed = |problem: std::io::Error| Error::file(folder, problem);
    let mut files = vec![];
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|found| found.eq_ignore_ascii_case("mat")) && may_be_file(&path) {
            files.push((path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), path));
        }
    }
    if files.is_empty() {
        return Err(Error::file(folder, "holds no .mat file"));
    }
    files.sort();
    Ok(files)
}

/// Writes `OUT/KEY.png` for every key and file from the labels that `read` decodes.
fn write_all(
    files: &[(String, PathBuf)],
    out: &Path,
    read: impl Fn(&[u8]) -> Result<LabelMatrix, String> + Sync,
) -> Result<()> {
    let write = |(key, file): &(String, PathBuf)| {
        let out = out.join(key.clone() + ".png");
        if exists(&out)? {
            return Ok(());
        }
        let bytes = MATLAB_FILE.read(file).map_err(|problem| Error::file(file, problem))?;
        let png = read(&bytes).and_then(|map| encode_labels(map.width, map.height, &map.labels));
        let png = png.map_err(|problem| Error::file(file, problem))?;
        write_atomically(&out, |writer| writer.write_all(&png))
    };
    let _held = OutputFolder::hold(out)?;
    let mut progress = Progress::new("label map", 0, files.len() as u64);
    let mut done = 0;
    for chunk in files.chunks(CHUNK) {
        chunk.par_iter().try_for_each(write)?;
        done += chunk.len() as u64;
        progress.update(done, "");
    }
    mention(&format!("{}: {} label maps", printable_path(out), files.len()));
    Ok(())
}

const CACHE_EXAMPLE: &str = "Example:
  seg4diff prepare cache --config configs/sa1b.toml --out data/sa1b/cache";

/// Compute latents and text embeddings of a config's data once, for training to read
///
/// Training with data.cache = "DIR" then loads neither text encoders nor autoencoder, and has the same losses to the
/// bit. What is in the folder already is kept, so that the command can be stopped and started again, and run anew when
/// images or captions were added or changed. An image that is changed is another image: it gets an entry of its own.
#[derive(Args, Clone, Debug)]
#[command(after_help = CACHE_EXAMPLE)]
pub struct CacheArgs {
    /// Config file (TOML) of the training
    #[arg(long, value_name = "F")]
    pub config: PathBuf,
    /// Set one value over the config file, such as data.resolution=512; may be given many times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Folder of the cache [default: data.cache of the config]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Size of a file in MiB; a command that is killed loses at most one
    #[arg(long, value_name = "MIB", default_value_t = SHARD_BYTES >> 20, value_parser = clap::value_parser!(u64).range(1..=65536))]
    pub shard_size: u64,
}

fn cache(args: &CacheArgs, processes: &dyn Collective) -> Result<()> {
    let mut config = RunConfig::load(&args.config, &args.set)?;
    // The folder need not exist yet.
    let named = config.data.cache.take();
    let nowhere = "there is no folder for the cache: give --out DIR, or data.cache in the config";
    let folder = args.out.clone().or(named).ok_or_else(|| Error::Usage(nowhere.into()))?;
    config.check_files()?;
    let device = config.device.open()?;
    if let Some(scenes) = &config.scenes {
        demo::draw_missing(scenes, processes)?;
    }
    let filled = fill(&config, &device, &folder, args.shard_size << 20, processes)?;
    mention(&format!("{}\n{filled}", printable_path(&folder)));
    Ok(())
}
