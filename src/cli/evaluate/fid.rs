//! `evaluate fid`: feature distances between two folders of images.
use super::{say_distances, write_scores};
use crate::config::DeviceChoice;
use crate::distributed::Collective;
use crate::eval::generation::statistics::{Statistics, of_folder};
use crate::eval::generation::{ReferenceStatistics, load_networks, npz};
use crate::eval::turns::Turns;
use crate::system::error::{Error, Result};
use crate::system::whole_file::check_writable;
use clap::Args;
use std::path::{Path, PathBuf};

const HELP: &str = "Weights of Inception, from those that pytorch-fid downloads (never unpickled here):
  python -c \"import torch, safetensors.torch as s; s.save_file(torch.load(
    'pt_inception-2015-12-05-6726825d.pth', weights_only=True), 'inception.safetensors')\"

Example:
  seg4diff evaluate fid --real data/coco/val2017 --generated images --inception inception.safetensors";

/// Compare generated images with real ones by their features: Fréchet distance (FID) and kernel distance (KID)
///
/// FID is pytorch-fid's. KID is over all pairs of up to 1000 images a side, beyond that the mean over 100 random
/// subsets of 1000 images, always the same.
#[derive(Args, Clone, Debug)]
#[command(after_help = HELP)]
pub struct FidArgs {
    /// Real images: a folder of images of any sizes and formats, or a .npz of pytorch-fid
    #[arg(long, value_name = "DIR")]
    pub real: PathBuf,
    /// Generated images, likewise
    #[arg(long, value_name = "DIR")]
    pub generated: PathBuf,
    /// Weights of FID's Inception: safetensors with the keys of pytorch-fid's fid_inception_v3()
    #[arg(long, value_name = "F", required_unless_present = "features")]
    pub inception: Option<PathBuf>,
    /// Folder of the demo's classifier, checkpoints/demo-features: its distance is FD-demo
    #[arg(long, value_name = "DIR")]
    pub features: Option<PathBuf>,
    /// Images that go through a network together
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch: u32,
    /// auto (CUDA if there is one, else the CPU), cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Write Inception's statistics of the real images: a .npz, which can stand for them from then on
    #[arg(long, value_name = "F", requires = "inception")]
    pub save_real: Option<PathBuf>,
    /// File for the scores: JSON with fid, kid and fd_demo, those that were measured
    #[arg(long, value_name = "F")]
    pub json: Option<PathBuf>,
}

pub fn run(args: &FidArgs, processes: &dyn Collective) -> Result<()> {
    for file in args.json.iter().chain(&args.save_real).filter(|_| processes.is_main()) {
        check_writable(file)?;
    }
    for path in [&args.real, &args.generated] {
        if is_statistics(path) && args.features.is_some() {
            let problem = format!("{}: a .npz has Inception's features; --features needs images", path.display());
            return Err(Error::Usage(problem));
        }
    }
    let device = args.device.open()?;
    let networks = load_networks(args.inception.as_deref(), args.features.as_deref(), &device)?;
    let turns = Turns::new(processes);
    let statistics = |path: &Path, what| match is_statistics(path) {
        true => networks.iter().map(|network| Statistics::read(path, network.as_ref())).collect(),
        false => of_folder(&networks, path, args.batch as usize, what, &turns),
    };
    let (real, generated) = (statistics(&args.real, "real image")?, statistics(&args.generated, "generated image")?);
    if !turns.is_main() {
        return Ok(());
    }
    if let (Some(file), Some(of_inception)) = (&args.save_real, real.first()) {
        npz::write(file, &of_inception.gaussian()?)?;
    }
    let scores = ReferenceStatistics { networks, real }.score(&generated)?;
    write_scores(args.json.as_deref(), &scores)?;
    say_distances(&scores)
}

fn is_statistics(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("npz"))
}
