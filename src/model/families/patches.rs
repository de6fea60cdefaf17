//! Latents cut into the squares that image tokens stand for.
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
