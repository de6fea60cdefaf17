//! A convolution's weights and geometry.
use candle_core::{Result, Tensor, bail};

/// The autoencoder's two ways in which output positions follow input positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stride {
    /// Same height and width: zeros all around.
    One,
    /// Half the height and width: zeros at the right and the bottom only, as diffusers' `Downsample2D`.
    Two,
}

/// A convolution with bias, and a ReLU after it where wanted.
pub struct Conv2d {
    /// `[out, in, kernel height, kernel width]`.
    pub(super) weight: Tensor,
    /// `[out]`.
    pub(super) bias: Tensor,
    pub(super) channels: usize,
    /// Height and width.
    pub(super) kernel: (usize, usize),
    pub(super) stride: usize,
    /// Zeros before the first and after the last row.
    pub(super) rows: (usize, usize),
    /// Zeros before the first and after the last column.
    pub(super) columns: (usize, usize),
    pub(super) relu: bool,
}

impl Conv2d {
    /// `weight` `[out, in, kernel, kernel]` with kernel 1 or 3, `bias` `[out]`; stride 2 with kernel 3 alone.
    pub fn new(weight: Tensor, bias: Tensor, stride: Stride) -> Result<Self> {
        let (_, _, height, width) = weight.dims4()?;
        match (height, width, stride) {
            (1, 1, Stride::One) => Self::padded(weight, bias, 1, (0, 0)),
            (3, 3, Stride::One) => Self::padded(weight, bias, 1, (1, 1)),
            (3, 3, Stride::Two) => Ok(Self { rows: (0, 1), columns: (0, 1), ..Self::padded(weight, bias, 2, (0, 0))? }),
            _ => bail!("conv2d: weight {:?}, stride {stride:?}", weight.shape()),
        }
    }

    /// Any kernel, with `padding` (rows, columns) of zeros on both sides, as torch's `Conv2d`.
    pub fn padded(weight: Tensor, bias: Tensor, stride: usize, padding: (usize, usize)) -> Result<Self> {
        let (output, channels, height, width) = weight.dims4()?;
        if stride == 0 || padding.0 >= height || padding.1 >= width || bias.dims() != [output] {
            bail!("conv2d: weight {:?} with bias {:?}, stride {stride}, {padding:?}", weight.shape(), bias.shape())
        }
        Ok(Self {
            weight: weight.contiguous()?,
            bias: bias.contiguous()?,
            channels,
            kernel: (height, width),
            stride,
            rows: (padding.0, padding.0),
            columns: (padding.1, padding.1),
            relu: false,
        })
    }

    /// With negative outputs set to 0.
    pub fn with_relu(self) -> Self {
        Self { relu: true, ..self }
    }
}
