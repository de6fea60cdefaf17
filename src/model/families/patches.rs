//! Latents cut into the squares that image tokens stand for, and put together again.
use crate::autograd::Variable;
use candle_core::{Result, Tensor, bail};

/// Latents `[batch, channels, h, w]` as squares of `side`², `[batch, rows·columns, channels·side·side]`, and how many rows
/// and columns they are.
///
/// # Errors
/// They do not divide into such squares.
pub(super) fn cut(latents: &Tensor, side: usize) -> Result<(Tensor, (usize, usize))> {
    let (batch, channels, height, width) = latents.dims4()?;
    let (rows, columns) = (height / side, width / side);
    if rows * side != height || columns * side != width || rows == 0 || columns == 0 {
        bail!("latents of {height}×{width} do not divide into patches of {side}×{side}");
    }
    let patches = latents
        .reshape(&[batch, channels, rows, side, columns, side][..])?
        .permute([0, 2, 4, 1, 3, 5].as_slice())?
        .reshape((batch, rows * columns, channels * side * side))?;
    Ok((patches, (rows, columns)))
}

/// What [`cut`] undoes: squares of `side`² of these rows and columns as `[batch, channels, h, w]`.
pub(super) fn put_together(squares: &Variable, (rows, columns): (usize, usize), side: usize) -> Result<Variable> {
    let (batch, _, values) = squares.dims3()?;
    let channels = values / (side * side);
    squares.reshape(&[batch, rows, columns, channels, side, side][..])?.permute(&[0, 3, 1, 4, 2, 5])?.reshape((
        batch,
        channels,
        rows * side,
        columns * side,
    ))
}
