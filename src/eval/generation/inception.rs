//! FID's Inception-v3 (pytorch-fid: `fid_inception_v3`), up to its 2048 pooled features.
//!
//! It differs from torchvision's: the average pools of blocks A, C and E exclude padding, and the last block has a
//! max pool instead.
use super::{FeatureNetwork, FrechetMetric};
use crate::kernels::pool::{Pool, pool};
use crate::model::weights::Weights;
use crate::ops::conv2d::Conv2d;
use crate::ops::{Enlarge, Rows};
use crate::system::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use std::path::Path;

/// Side of the input images.
const SIDE: usize = 299;
/// Number of features.
const FEATURES: usize = 2048;
/// torchvision's, of every batch norm in this network.
const BATCH_NORM_EPS: f64 = 1e-3;

/// The network, with batch norms folded into the preceding convolutions.
pub struct Inception {
    stem: [Conv2d; 5],
    blocks: Vec<InceptionBlock>,
    device: Device,
}

/// Branches with a common input; their outputs are concatenated along channels.
struct InceptionBlock(Vec<Branch>);

/// One branch of a block.
struct Branch {
    /// Applied before the convolutions.
    pool: Option<(Pool, usize, usize)>,
    convolutions: Vec<Conv2d>,
    /// Two convolutions applied to the branch's output, concatenated along channels.
    fork: Option<[Conv2d; 2]>,
}

impl Inception {
    /// Loads a safetensors file with the keys of pytorch-fid's `fid_inception_v3().state_dict()`.
    ///
    /// # Errors
    /// A key is missing, has another shape, or belongs to another network.
    pub fn load(file: &Path, device: &Device) -> Result<Self> {
        let weights = Weights::open(file, &[file.to_path_buf()], DType::F32, device)?;
        let loader = InceptionLoader(&weights);
        let network = Self { stem: loader.stem()?, blocks: loader.blocks()?, device: device.clone() };
        // The classifier is unused, but identifies the weights: FID's has 1008 classes, torchvision's own 1000.
        if weights.contains("fc.weight") {
            weights.get("fc.weight", (1008, FEATURES))?;
        }
        let is_spare =
            |name: &str| ["fc.weight", "fc.bias"].contains(&name) || name.ends_with(".bn.num_batches_tracked");
        weights.names().into_iter().filter(|name| is_spare(name)).for_each(|name| weights.ignore(name));
        weights.finish()?;
        Ok(network)
    }
}

impl FeatureNetwork for Inception {
    fn metric(&self) -> FrechetMetric {
        FrechetMetric::Fid
    }

    fn length(&self) -> usize {
        FEATURES
    }

    /// Resized bilinearly without antialiasing, as in pytorch-fid's network.
    fn prepare(&self, image: &RgbImage) -> Vec<f32> {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let (vertical, horizontal) = (Enlarge::new(height, SIDE), Enlarge::new(width, SIDE));
        let mut plane = vec![0f32; width * height];
        let mut pixels = vec![0f32; 3 * SIDE * SIDE];
        for (channel, target) in pixels.chunks_exact_mut(SIDE * SIDE).enumerate() {
            for (value, pixel) in plane.iter_mut().zip(image.as_raw().chunks_exact(3)) {
                *value = f32::from(pixel[channel]) / 255.0;
            }
            let mut rows = Rows::new(&plane, &vertical, &horizontal);
            for (y, row) in target.chunks_exact_mut(SIDE).enumerate() {
                rows.row(y, row);
                row.iter_mut().for_each(|value| *value = 2.0 * *value - 1.0);
            }
        }
        pixels
    }

    fn features(&self, pixels: Vec<f32>, images: usize) -> Result<Tensor> {
        let images = Tensor::from_vec(pixels, (images, 3, SIDE, SIDE), &self.device)?;
        let [conv1a, conv2a, conv2b, conv3b, conv4a] = &self.stem;
        let x = conv2b.forward(&conv2a.forward(&conv1a.forward(&images)?)?)?;
        let x = pool(&x, Pool::Max, 2, 0)?;
        let x = conv4a.forward(&conv3b.forward(&x)?)?;
        let mut x = pool(&x, Pool::Max, 2, 0)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        Ok(x.mean((2, 3))?)
    }
}

impl InceptionBlock {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let mut outputs = Vec::new();
        for branch in &self.0 {
            let mut y = match branch.pool {
                Some((kind, stride, padding)) => pool(x, kind, stride, padding)?,
                None => x.clone(),
            };
            for convolution in &branch.convolutions {
                y = convolution.forward(&y)?;
            }
            match &branch.fork {
                Some(fork) => fork.iter().try_for_each(|last| last.forward(&y).map(|y| outputs.push(y)))?,
                None => outputs.push(y),
            }
        }
        Tensor::cat(&outputs, 1)
    }
}

/// A convolution of a branch with stride 1 and "same" padding: name, output channels, kernel (rows, columns).
type ConvolutionLayer = (&'static str, usize, (usize, usize));

/// Builds the blocks of torchvision's `inception.py`.
struct InceptionLoader<'a>(&'a Weights);

impl InceptionLoader<'_> {
    fn stem(&self) -> Result<[Conv2d; 5]> {
        Ok([
            self.conv("Conv2d_1a_3x3", 3, 32, (3, 3), 2, (0, 0))?,
            self.conv("Conv2d_2a_3x3", 32, 32, (3, 3), 1, (0, 0))?,
            self.conv("Conv2d_2b_3x3", 32, 64, (3, 3), 1, (1, 1))?,
            self.conv("Conv2d_3b_1x1", 64, 80, (1, 1), 1, (0, 0))?,
            self.conv("Conv2d_4a_3x3", 80, 192, (3, 3), 1, (0, 0))?,
        ])
    }

    fn blocks(&self) -> Result<Vec<InceptionBlock>> {
        Ok(vec![
            self.block_a("Mixed_5b", 192, 32)?,
            self.block_a("Mixed_5c", 256, 64)?,
            self.block_a("Mixed_5d", 288, 64)?,
            self.block_b("Mixed_6a", 288)?,
            self.block_c("Mixed_6b", 768, 128)?,
            self.block_c("Mixed_6c", 768, 160)?,
            self.block_c("Mixed_6d", 768, 160)?,
            self.block_c("Mixed_6e", 768, 192)?,
            self.block_d("Mixed_7a", 768)?,
            self.block_e("Mixed_7b", 1280, Pool::Mean)?,
            self.block_e("Mixed_7c", 2048, Pool::Max)?,
        ])
    }

    fn block_a(&self, name: &str, input: usize, pooled: usize) -> Result<InceptionBlock> {
        let double = [("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3))];
        Ok(InceptionBlock(vec![
            self.branch(name, input, &[("branch1x1", 64, (1, 1))])?,
            self.branch(name, input, &[("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5))])?,
            self.branch(name, input, &double)?,
            self.pooled(name, input, Pool::Mean, pooled)?,
        ]))
    }

    fn block_b(&self, name: &str, input: usize) -> Result<InceptionBlock> {
        let double = [("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3))];
        Ok(InceptionBlock(vec![
            self.halved(name, input, &[], ("branch3x3", 384))?,
            self.halved(name, input, &double, ("branch3x3dbl_3", 96))?,
            halved_pool(),
        ]))
    }

    fn block_c(&self, name: &str, input: usize, inner: usize) -> Result<InceptionBlock> {
        let single = [("branch7x7_1", inner, (1, 1)), ("branch7x7_2", inner, (1, 7)), ("branch7x7_3", 192, (7, 1))];
        let double = [
            ("branch7x7dbl_1", inner, (1, 1)),
            ("branch7x7dbl_2", inner, (7, 1)),
            ("branch7x7dbl_3", inner, (1, 7)),
            ("branch7x7dbl_4", inner, (7, 1)),
            ("branch7x7dbl_5", 192, (1, 7)),
        ];
        Ok(InceptionBlock(vec![
            self.branch(name, input, &[("branch1x1", 192, (1, 1))])?,
            self.branch(name, input, &single)?,
            self.branch(name, input, &double)?,
            self.pooled(name, input, Pool::Mean, 192)?,
        ]))
    }

    fn block_d(&self, name: &str, input: usize) -> Result<InceptionBlock> {
        let single = [("branch3x3_1", 192, (1, 1))];
        let seven = [("branch7x7x3_1", 192, (1, 1)), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1))];
        Ok(InceptionBlock(vec![
            self.halved(name, input, &single, ("branch3x3_2", 320))?,
            self.halved(name, input, &seven, ("branch7x7x3_4", 192))?,
            halved_pool(),
        ]))
    }

    fn block_e(&self, name: &str, input: usize, kind: Pool) -> Result<InceptionBlock> {
        let double = [("branch3x3dbl_1", 448, (1, 1)), ("branch3x3dbl_2", 384, (3, 3))];
        Ok(InceptionBlock(vec![
            self.branch(name, input, &[("branch1x1", 320, (1, 1))])?,
            self.forked(name, input, &[("branch3x3_1", 384, (1, 1))], ["branch3x3_2a", "branch3x3_2b"])?,
            self.forked(name, input, &double, ["branch3x3dbl_3a", "branch3x3dbl_3b"])?,
            self.pooled(name, input, kind, 192)?,
        ]))
    }

    fn branch(&self, block: &str, mut input: usize, layers: &[ConvolutionLayer]) -> Result<Branch> {
        let mut convolutions = Vec::new();
        for &(name, output, kernel) in layers {
            let padding = (kernel.0 / 2, kernel.1 / 2);
            convolutions.push(self.conv(&format!("{block}.{name}"), input, output, kernel, 1, padding)?);
            input = output;
        }
        Ok(Branch { pool: None, convolutions, fork: None })
    }

    /// A pool followed by a convolution.
    fn pooled(&self, block: &str, input: usize, kind: Pool, output: usize) -> Result<Branch> {
        let branch = self.branch(block, input, &[("branch_pool", output, (1, 1))])?;
        Ok(Branch { pool: Some((kind, 1, 1)), ..branch })
    }

    /// Layers followed by a 3×3 convolution of stride 2.
    fn halved(&self, block: &str, input: usize, layers: &[ConvolutionLayer], last: (&str, usize)) -> Result<Branch> {
        let mut branch = self.branch(block, input, layers)?;
        let input = layers.last().map_or(input, |(_, output, _)| *output);
        branch.convolutions.push(self.conv(&format!("{block}.{}", last.0), input, last.1, (3, 3), 2, (0, 0))?);
        Ok(branch)
    }

    /// Layers followed by parallel 1×3 and 3×1 convolutions.
    fn forked(&self, block: &str, input: usize, layers: &[ConvolutionLayer], names: [&str; 2]) -> Result<Branch> {
        let branch = self.branch(block, input, layers)?;
        let fork = [
            self.conv(&format!("{block}.{}", names[0]), 384, 384, (1, 3), 1, (0, 1))?,
            self.conv(&format!("{block}.{}", names[1]), 384, 384, (3, 1), 1, (1, 0))?,
        ];
        Ok(Branch { fork: Some(fork), ..branch })
    }

    /// torchvision's `BasicConv2d`: convolution without bias, batch norm with running statistics, ReLU.
    fn conv(
        &self,
        name: &str,
        input: usize,
        output: usize,
        kernel: (usize, usize),
        stride: usize,
        padding: (usize, usize),
    ) -> Result<Conv2d> {
        let norm = |part: &str| {
            let values = self.0.get(&format!("{name}.bn.{part}"), output)?;
            Ok::<_, Error>(values.to_dtype(DType::F64)?)
        };
        let weight = self.0.get(&format!("{name}.conv.weight"), (output, input, kernel.0, kernel.1))?;
        let scale = (norm("weight")? / (norm("running_var")? + BATCH_NORM_EPS)?.sqrt()?)?;
        let bias = (norm("bias")? - (norm("running_mean")? * &scale)?)?.to_dtype(DType::F32)?;
        let weight = weight.to_dtype(DType::F64)?.broadcast_mul(&scale.reshape((output, 1, 1, 1))?)?;
        Ok(Conv2d::padded(weight.to_dtype(DType::F32)?, bias, stride, padding)?.with_relu())
    }
}

/// A max pool of stride 2.
fn halved_pool() -> Branch {
    Branch { pool: Some((Pool::Max, 2, 0)), convolutions: vec![], fork: None }
}
