//! What a model's image tokens have in common: their first three principal components, which make a picture of them.
use super::EvaluatedModel;
use super::generation::matrix::add_product;
use super::segmentation::{LabelledFolder, LabelledImage, SegmentationOptions, Segmenter, Vocabulary, each_batch};
use super::turns::Turns;
use crate::distributed::SingleProcess;
use crate::system::error::{Error, Result};
use candle_core::{DType, Device};
use faer::{Mat, MatRef};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// Components kept: red, green and blue.
pub const COMPONENTS: usize = 3;
/// Dimension of the subspace; larger than [`COMPONENTS`] for faster convergence.
const FOLLOWED: usize = 12;
/// Convergence: greatest residual relative to the greatest variance.
const PRECISION: f64 = 1e-12;
/// Greatest number of iterations; components of nearly equal variance never converge.
const STEPS: usize = 300;
/// Variances below this fraction of the greatest count as rounding errors.
const NOTHING: f64 = 1e-13;

/// One image's components after each chosen block: for each block `[positions, 3]`, scaled to [0, 1] over the image.
pub type BlockComponents = Vec<Vec<[f32; COMPONENTS]>>;

/// Receives an image, its components, and the grid of positions (rows, columns).
pub type VisitComponents<'a> = dyn FnMut(&LabelledImage, BlockComponents, (usize, usize)) -> Result<()> + 'a;

/// The components of the first `options.limit` images of `data` after each of the ascending `layers`, with the class
/// names as prompt, all by this process. `visit` receives each image with its components and the grid (rows, columns).
///
/// # Errors
/// Those of [`evaluate`](super::segmentation::evaluate).
pub fn components_of(
    EvaluatedModel { pipeline, scheduler, .. }: EvaluatedModel,
    data: &LabelledFolder,
    options: &SegmentationOptions,
    layers: &[usize],
    visit: &mut VisitComponents<'_>,
) -> Result<()> {
    let transformer = &pipeline.transformer;
    layers.iter().try_for_each(|&layer| transformer.check_block(layer))?;
    let mut segmenter = Segmenter::new(pipeline, scheduler, options)?;
    let vocabulary = Vocabulary::new(&pipeline.text_encoders, data)?;
    let grid = segmenter.grid();
    each_batch(data, options, &Turns::new(&SingleProcess), |first, images| {
        let numbered: Vec<_> = (first..).zip(images.iter().map(|image| &image.image)).collect();
        let first_of = |image| vocabulary.prompts_of(image, options.protocol).into_iter().next();
        let prompts: Vec<_> = images.iter().map(|image| vec![first_of(image).unwrap_or_default()]).collect();
        let mut found: Vec<BlockComponents> = vec![vec![]; images.len()];
        segmenter.each_batch(&numbered, &prompts, |pairs, embedded| {
            transformer.image_tokens_each(embedded, layers, |layer, tokens| {
                let tokens = tokens.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
                for (index, (image, _)) in pairs.iter().enumerate() {
                    let features = tokens.get(index)?.to_vec2::<f32>()?;
                    let components = principal_components(&features).ok_or_else(|| {
                        let key = &images[*image].key;
                        Error::Failed(format!("the image tokens of {key} after block {layer} are not finite"))
                    })?;
                    found[*image].push(components);
                }
                Ok(())
            })
        })?;
        images.iter().zip(found).try_for_each(|(image, components)| visit(image, components, grid))
    })
}

/// Projects the rows of `features` onto their first three principal components. Signs are chosen so that each
/// component's largest loading (the first of equals) is positive. Each component is scaled to [0, 1] over the rows; a
/// component without variance is 0.
///
/// `None` if a value is not finite.
pub fn principal_components(features: &[Vec<f32>]) -> Option<Vec<[f32; COMPONENTS]>> {
    let (rows, width) = (features.len(), features.first().map_or(0, Vec::len));
    let mut centred: Vec<f64> = features.iter().flatten().map(|value| f64::from(*value)).collect();
    if !centred.iter().all(|value| value.is_finite()) {
        return None;
    }
    for column in 0..width {
        let mean = (0..rows).map(|row| centred[row * width + column]).sum::<f64>() / rows as f64;
        (0..rows).for_each(|row| centred[row * width + column] -= mean);
    }
    let mut scaled = vec![[0f32; COMPONENTS]; rows];
    for (component, direction) in directions(&centred, rows, width)?.iter().enumerate() {
        let values: Vec<f64> = centred.chunks_exact(width).map(|row| dot(row, direction)).collect();
        let (least, most) = values.iter().fold((f64::MAX, f64::MIN), |(least, most), v| (least.min(*v), most.max(*v)));
        for (scaled, value) in scaled.iter_mut().zip(values) {
            scaled[component] = if most > least { ((value - least) / (most - least)) as f32 } else { 0.0 };
        }
    }
    Some(scaled)
}

/// The directions of the greatest variance of `centred` `[rows, width]`, three or, where it has fewer, those; by subspace
/// iteration with Rayleigh and Ritz's choice of directions (Golub and Van Loan, 8.2.4).
fn directions(centred: &[f64], rows: usize, width: usize) -> Option<Vec<Vec<f64>>> {
    let followed = FOLLOWED.min(width).min(rows);
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut draw = || -> Vec<f64> { (0..width).map(|_| StandardNormal.sample(&mut random)).collect() };
    let mut basis: Vec<Vec<f64>> = (0..followed).map(|_| draw()).collect();
    orthonormalise(&mut basis);
    let mut variances: Vec<f64> = vec![];
    for _ in 0..STEPS {
        let images = gram_product(centred, rows, width, &basis);
        let small = Mat::from_fn(followed, followed, |i, j| dot(&basis[i], &images[j]));
        // It is positive semidefinite: its singular values and vectors are its eigenvalues, descending, and eigenvectors.
        let eigen = small.thin_svd().ok()?;
        variances = eigen.S().column_vector().iter().copied().collect();
        basis = combined(&basis, eigen.U());
        let images = combined(&images, eigen.U());
        let greatest = variances.first().copied().unwrap_or(0.0);
        let left = (0..COMPONENTS.min(basis.len())).map(|i| residual(&images[i], &basis[i], variances[i]));
        if left.fold(0f64, f64::max) <= PRECISION * greatest {
            break;
        }
        basis = images;
        orthonormalise(&mut basis);
    }
    let greatest = variances.first().copied().unwrap_or(0.0);
    let mut found: Vec<Vec<f64>> = basis.into_iter().take(COMPONENTS).collect();
    found.truncate(variances.iter().take_while(|variance| **variance > NOTHING * greatest).count());
    for direction in &mut found {
        let largest =
            direction.iter().fold(0f64, |most, loading| if loading.abs() > most.abs() { *loading } else { most });
        if largest < 0.0 {
            direction.iter_mut().for_each(|loading| *loading = -*loading);
        }
    }
    Some(found)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The residual norm ‖`image − value·vector`‖.
fn residual(image: &[f64], vector: &[f64], value: f64) -> f64 {
    image.iter().zip(vector).map(|(image, vector)| (image - value * vector).powi(2)).sum::<f64>().sqrt()
}

/// `XᵀX·v` for each vector.
fn gram_product(x: &[f64], rows: usize, width: usize, vectors: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let (count, x) = (vectors.len(), MatRef::from_row_major_slice(x, rows, width));
    let flat = vectors.concat();
    let mut projected = vec![0.0; rows * count];
    add_product(&mut projected, x, MatRef::from_row_major_slice(&flat, count, width).transpose());
    let mut images = vec![0.0; count * width];
    add_product(&mut images, MatRef::from_row_major_slice(&projected, rows, count).transpose(), x);
    images.chunks_exact(width).map(<[f64]>::to_vec).collect()
}

/// Vectors weighed by the columns of `rotation`.
fn combined(vectors: &[Vec<f64>], rotation: MatRef<f64>) -> Vec<Vec<f64>> {
    let one = |column: usize| {
        let mut sum = vec![0.0; vectors[0].len()];
        for (row, vector) in vectors.iter().enumerate() {
            sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += rotation[(row, column)] * value);
        }
        sum
    };
    (0..vectors.len()).map(one).collect()
}

/// Gram–Schmidt, run twice against rounding errors; linearly dependent vectors become zero.
fn orthonormalise(vectors: &mut [Vec<f64>]) {
    for index in 0..vectors.len() {
        let (before, rest) = vectors.split_at_mut(index);
        let vector = &mut rest[0];
        let length = dot(vector, vector).sqrt();
        for _ in 0..2 {
            for other in before.iter() {
                let shared = dot(vector, other);
                vector.iter_mut().zip(other).for_each(|(value, other)| *value -= shared * other);
            }
        }
        let left = dot(vector, vector).sqrt();
        let scale = if left > length * 1e-14 { 1.0 / left } else { 0.0 };
        vector.iter_mut().for_each(|value| *value *= scale);
    }
}
