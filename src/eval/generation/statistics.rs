//! Statistics of the features of many images under some networks, gathered a batch at a time; no image is kept. Of several
//! processes rank 0 has them.
use super::kernel::{VectorSample, kernel_distance};
use super::moments::{Gaussian, Moments};
use super::npz;
use super::{FeatureNetwork, FrechetMetric};
use crate::data::codec::photograph::{EXTENSIONS, UNREAD_EXTENSIONS};
use crate::eval::read_ahead::read_ahead;
use crate::eval::turns::Turns;
use crate::sample::image::read_rgb8;
use crate::system::error::{Error, Result};
use crate::system::progress::Progress;
use candle_core::DType;
use image::RgbImage;
use rayon::prelude::*;
use std::borrow::Borrow;
use std::path::{Path, PathBuf};

/// Batches that are decoded ahead of the networks.
const AHEAD: usize = 2;

/// Images as networks see them.
pub struct Prepared {
    /// For each network the pixels of all images, `[images, 3, height, width]`.
    inputs: Vec<Vec<f32>>,
    images: usize,
}

impl Prepared {
    /// Prepares images for every network, on all threads; one in its own size lives no longer than that takes.
    ///
    /// # Errors
    /// One of the images is an error.
    pub fn new(
        networks: &[Box<dyn FeatureNetwork>],
        images: impl IndexedParallelIterator<Item = Result<impl Borrow<RgbImage>>>,
    ) -> Result<Self> {
        let prepare = |image: &RgbImage| networks.iter().map(|network| network.prepare(image)).collect::<Vec<_>>();
        let images = images.map(|image| Ok(prepare(image?.borrow()))).collect::<Result<Vec<_>>>()?;
        let input = |network: usize| images.iter().flat_map(|inputs| &inputs[network]).copied().collect();
        Ok(Self { inputs: (0..networks.len()).map(input).collect(), images: images.len() })
    }
}

/// What is known of the features of some images under one network.
#[derive(Clone, Debug)]
pub enum Statistics {
    /// Of images.
    Images {
        /// For the Fréchet distance.
        moments: Moments,
        /// For the kernel distance, where that is measured.
        sample: Option<VectorSample>,
    },
    /// From a file, which does not say of how many images.
    File(Gaussian),
}

impl Statistics {
    /// Of no images yet, for each of the `networks`.
    pub fn of_none(networks: &[Box<dyn FeatureNetwork>]) -> Vec<Self> {
        let of_none = networks.iter().map(|network| Self::Images {
            moments: Moments::new(network.length()),
            sample: (network.metric() == FrechetMetric::Fid).then(|| VectorSample::new(network.length())),
        });
        of_none.collect()
    }

    /// From a `.npz` file as pytorch-fid writes it.
    ///
    /// # Errors
    /// A file that is none, or of features of another length than `network`'s.
    pub fn read(file: &Path, network: &dyn FeatureNetwork) -> Result<Self> {
        npz::read(file, network.length()).map(Self::File)
    }

    /// Takes in feature vectors, one after the other in `vectors`.
    fn add(&mut self, vectors: &[f32]) {
        if let Self::Images { moments, sample } = self {
            moments.add(vectors);
            if let Some(sample) = sample {
                sample.add(vectors);
            }
        }
    }

    /// Mean and covariance of the features.
    pub fn gaussian(&self) -> Result<Gaussian> {
        match self {
            Self::Images { moments, .. } => moments.gaussian(),
            Self::File(gaussian) => Ok(gaussian.clone()),
        }
    }

    /// How many images there were, where that is known.
    pub fn images(&self) -> Option<usize> {
        match self {
            Self::Images { moments, .. } => Some(moments.count()),
            Self::File(_) => None,
        }
    }

    /// The kernel distance from `other`'s features; none where it is not measured, or a file stands for one side's.
    pub fn kernel_distance(&self, other: &Self) -> Result<Option<f64>> {
        match (self, other) {
            (Self::Images { sample: Some(a), .. }, Self::Images { sample: Some(b), .. }) => {
                kernel_distance(a, b).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// The feature vectors of prepared images, one after the other, under each of the networks in turn.
///
/// # Errors
/// A feature is not finite.
pub fn features(networks: &[Box<dyn FeatureNetwork>], prepared: Prepared) -> Result<Vec<f64>> {
    let mut all = vec![];
    for (network, input) in networks.iter().zip(prepared.inputs) {
        let features =
            network.features(input, prepared.images)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        if !features.iter().all(|value| value.is_finite()) {
            return Err(Error::Failed(format!("{}: features are not finite", network.metric().name())));
        }
        all.extend(features.into_iter().map(f64::from));
    }
    Ok(all)
}

/// Takes the `features` of some images under the `networks` into the `statistics`, one for each; returns how many images they
/// are of.
pub fn add(features: &[f64], networks: &[Box<dyn FeatureNetwork>], statistics: &mut [Statistics]) -> usize {
    let images = features.len() / networks.iter().map(|network| network.length()).sum::<usize>().max(1);
    let mut rest = features;
    for (network, statistics) in networks.iter().zip(statistics) {
        let (own, others) = rest.split_at(images * network.length());
        // They were f32.
        statistics.add(&own.iter().map(|value| *value as f32).collect::<Vec<_>>());
        rest = others;
    }
    images
}

/// Statistics of the images of a folder under each network; `what` is what progress counts. Of several processes rank 0 has
/// them, and the others those of no images.
///
/// Images are decoded on all threads some batches ahead, and taken in the order of their names.
///
/// # Errors
/// A folder without image files, or an image that cannot be read, by name.
pub fn of_folder(
    networks: &[Box<dyn FeatureNetwork>],
    folder: &Path,
    batch: usize,
    what: &'static str,
    turns: &Turns,
) -> Result<Vec<Statistics>> {
    let files = image_files(folder)?;
    let batch = batch.max(1);
    let mut statistics = Statistics::of_none(networks);
    let mut progress = Progress::new(what, 0, files.len() as u64);
    let mut done = 0;
    let (rank, size) = (turns.processes.rank(), turns.processes.size());
    let batches = files.chunks(batch).skip(rank).step_by(size);
    let batches = batches.map(|files| Prepared::new(networks, files.par_iter().map(|file| read_rgb8(file))));
    read_ahead(batches, AHEAD - 1, |batches| {
        let compute = |_| batches.recv().map_or(Ok(vec![]), |prepared| features(networks, prepared?));
        turns.gather_each(files.len().div_ceil(batch), compute, |features| {
            done += add(features, networks, &mut statistics) as u64;
            progress.update(done, "");
            Ok(())
        })
    })?;
    Ok(statistics)
}

/// The picture files of a folder by name; folders in it are left out, as are hidden files.
///
/// # Errors
/// When it cannot be read, or has no such file.
pub fn image_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::file(folder, e))?;
    let mut files = Vec::new();
    let mut others = 0;
    for entry in entries {
        let path = entry.map_err(|e| Error::file(folder, e))?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        match extension.as_str() {
            _ if hidden || path.is_dir() => {}
            extension if EXTENSIONS.contains(&extension) => files.push(path),
            extension if UNREAD_EXTENSIONS.contains(&extension) => others += 1,
            _ => {}
        }
    }
    if files.is_empty() {
        return Err(Error::file(folder, format!("there is no picture ({})", EXTENSIONS.join(", "))));
    }
    if others > 0 {
        let unread = UNREAD_EXTENSIONS.join(", ");
        tracing::warn!("{}: {others} images are of formats that are not read ({unread})", folder.display());
    }
    files.sort();
    Ok(files)
}
