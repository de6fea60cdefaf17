//! `prepare`: makes data sets, and caches of what encoders make of them.
use super::mention;
use crate::config::RunConfig;
use crate::data::labels::encode_labels;
use crate::data::matlab::LabelMatrix;
use crate::data::scenes::{self, SceneOptions, Split};
use crate::encode::fill;
use crate::error::{Error, Result};
use crate::limits::MATLAB_FILE;
use crate::output_folder::OutputFolder;
use crate::paths::{exists, may_be_file};
use crate::report::progress::Progress;
use crate::terminal::printable_path;
use crate::whole_file::write_atomically;
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
    pub fn run(&self) -> Result<()> {
        match self {
            Self::Scenes(args) => scenes(args),
            Self::Labels(args) => labels(args),
            Self::Cache(args) => cache(args),
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
    let were_there = scenes::write_missing(&args.out, args.count, options, |done| progress.update(done, ""))?;
    drop(progress);
    let said = if were_there { " were there" } else { "" };
    mention(&format!("{}: {} scenes{said}", printable_path(&args.out), args.count));
    Ok(())
}

const LABELS_EXAMPLE: &str = "Example:
  seg4diff prepare labels --mat trainval --out VOCdevkit/VOC2010/SegmentationContext459";

/// Write label maps as PNG that a data set has in another form
///
/// PASCAL-Context's are MATLAB files, one an image. Maps that are in the folder already are left as they are, so that
/// the command can be stopped and started again.
#[derive(Args, Clone, Debug)]
#[command(after_help = LABELS_EXAMPLE)]
pub struct LabelsArgs {
    /// Folder of .mat files (level 5), each with a matrix of labels
    #[arg(long, value_name = "DIR")]
    pub mat: PathBuf,
    /// Name of the matrix
    #[arg(long, value_name = "NAME", default_value = "LabelMap")]
    pub variable: String,
    /// Folder for the label maps: NAME.png for NAME.mat
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Files that are written between two looks at the progress.
const CHUNK: usize = 64;

fn labels(args: &LabelsArgs) -> Result<()> {
    let failed = |problem: std::io::Error| Error::file(&args.mat, problem);
    let mut files = vec![];
    for entry in std::fs::read_dir(&args.mat).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("mat")) && may_be_file(&path) {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::file(&args.mat, "holds no .mat file"));
    }
    files.sort();
    let _held = OutputFolder::hold(&args.out)?;
    let mut progress = Progress::new("label map", 0, files.len() as u64);
    let mut done = 0;
    for chunk in files.chunks(CHUNK) {
        chunk.par_iter().try_for_each(|file| write_labels(file, args))?;
        done += chunk.len() as u64;
        progress.update(done, "");
    }
    mention(&format!("{}: {} label maps", printable_path(&args.out), files.len()));
    Ok(())
}

fn write_labels(file: &Path, args: &LabelsArgs) -> Result<()> {
    let Some(stem) = file.file_stem() else { return Ok(()) };
    let out = args.out.join(Path::new(stem).with_added_extension("png"));
    if exists(&out)? {
        return Ok(());
    }
    let bytes = MATLAB_FILE.read(file).map_err(|problem| Error::file(file, problem))?;
    let LabelMatrix { width, height, labels } =
        LabelMatrix::read(&bytes, &args.variable).map_err(|problem| Error::file(file, problem))?;
    let png = encode_labels(width, height, &labels).map_err(|problem| Error::file(file, problem))?;
    write_atomically(&out, |writer| writer.write_all(&png))
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
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=65536))]
    pub shard_size: u64,
}

fn cache(args: &CacheArgs) -> Result<()> {
    let mut config = RunConfig::load(&args.config, &args.set)?;
    // It need not be there yet.
    let named = config.data.cache.take();
    let Some(folder) = args.out.clone().or(named) else {
        return Err(Error::Usage(
            "there is no folder for the cache: give --out DIR, or data.cache in the config".into(),
        ));
    };
    config.check_files()?;
    let device = config.device.open()?;
    if let Some(scenes) = &config.scenes {
        crate::train::draw_missing(scenes)?;
    }
    let filled = fill(&config, &device, &folder, args.shard_size << 20)?;
    mention(&format!("{}\n{filled}", printable_path(&folder)));
    Ok(())
}
