//! Rotary positions: pairs of a head's features turned by angles that grow with the token's place.
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;

use super::backend::{Variable, apply};
use crate::ops::device::upload;
use candle_core::{Device, Result, Tensor, bail};

/// By what angles the pairs of a head's features are turned, of some tokens.
#[derive(Clone, Debug)]
pub struct RotaryTable {
    /// f32 `[tokens, head_dim/2]`
    cosines: Tensor,
    /// As `cosines`.
    sines: Tensor,
}

impl RotaryTable {
    /// Tokens of a grid of rows and columns, one row after the other. The features of a head are shared out between a place
    /// that is always 0, the row and the column, in that order: `axes` says how many each gets. The angles of pair `i` of
    /// an axis with `n` features are its place times `theta^(−2i/n)` (diffusers' `FluxPosEmbed`).
    ///
    /// # Errors
    /// The device refuses the tables.
    pub fn of_grid((rows, columns): (usize, usize), axes: [usize; 3], theta: f64, device: &Device) -> Result<Self> {
        let place = |token: usize| [0, token / columns, token % columns];
        Self::of_places((0..rows * columns).map(place), axes, theta, device)
    }

    /// Tokens at these places, which have a number for each of the `axes`; see [`Self::of_grid`].
    ///
    /// # Errors
    /// The device refuses the tables.
    pub fn of_places<const N: usize>(
        places: impl Iterator<Item = [usize; N]>,
        axes: [usize; N],
        theta: f64,
        device: &Device,
    ) -> Result<Self> {
        let pairs = axes.iter().sum::<usize>() / 2;
        let turn = |axis: usize, place: usize| {
            (0..axes[axis] / 2).map(move |pair| place as f64 / theta.powf(2.0 * pair as f64 / axes[axis] as f64))
        };
        let (mut angles, mut tokens) = (vec![], 0);
        for place in places {
            tokens += 1;
            place.into_iter().enumerate().for_each(|(axis, place)| angles.extend(turn(axis, place)));
        }
        let table = |of: fn(f64) -> f64| {
            upload(angles.iter().map(|angle| of(*angle) as f32).collect::<Vec<_>>(), (tokens, pairs), device)
        };
        Ok(Self { cosines: table(f64::cos)?, sines: table(f64::sin)? })
    }

    /// The table of its first `tokens` tokens, or of all that it has.
    ///
    /// # Errors
    /// None but the device's.
    pub fn first(&self, tokens: usize) -> Result<Self> {
        let tokens = tokens.min(self.cosines.dim(0)?);
        Ok(Self { cosines: self.cosines.narrow(0, 0, tokens)?, sines: self.sines.narrow(0, 0, tokens)? })
    }
}

/// Turns the pairs of features `(2i, 2i + 1)` of every head of the first tokens, as many as `table` has; the others, at place
/// 0, stay as they are (diffusers' `apply_rotary_emb` with `use_real_unbind_dim=-1`).
///
/// x `[batch, tokens, heads·head_dim]`.
///
/// # Errors
/// The table has more tokens than x, or its heads do not divide the width.
pub fn rotary(x: &Variable, table: &RotaryTable) -> Result<Variable> {
    let ((_, tokens, width), (turned, pairs)) = (x.dims3()?, table.cosines.dims2()?);
    if turned > tokens || !width.is_multiple_of((2 * pairs).max(1)) {
        bail!("rotary positions: x {:?}, {turned} tokens of {pairs} pairs", x.dims());
    }
    apply(Rotary { table: table.clone() }, &[x])
}

/// Input: x.
pub(super) struct Rotary {
    pub table: RotaryTable,
}

#[cfg(test)]
mod tests;
