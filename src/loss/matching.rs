//! Which map stands for which mask: Hungarian matching.
use crate::config::{FocalProbability, LossConfig};
use crate::ops::{self, Costs};
use candle_core::{Device, Result, Tensor};
use pathfinding::kuhn_munkres::kuhn_munkres_min;
use pathfinding::matrix::Matrix;

/// The choice of maps for the masks of one image. A GPU works out the costs while the host goes on.
#[derive(Default)]
pub struct Matching {
    /// None where there is nothing to choose.
    costs: Option<Costs>,
    /// The most that a pair may cost.
    limit: Option<f64>,
    /// The numbers of the maps that were compared; none: all were.
    numbers: Option<Vec<usize>>,
}

impl Matching {
    /// Begins to compare maps `[maps, positions]` (logits) with masks of `positions` zeros and ones each.
    ///
    /// These may be some of all maps: then `numbers` says which.
    pub fn begin(maps: &Tensor, numbers: Option<Vec<usize>>, masks: &[&[f32]], config: &LossConfig) -> Result<Self> {
        if masks.is_empty() || maps.dim(0)? == 0 {
            return Ok(Self::default());
        }
        let masks = Tensor::from_vec(masks.concat(), (masks.len(), masks[0].len()), &Device::Cpu)?;
        let raw_logit = config.focal_probability == FocalProbability::Logit;
        let costs = ops::match_cost(maps, &masks, (config.match_focal, config.match_dice), raw_logit)?;
        Ok(Self { costs: Some(costs), limit: config.match_max_cost, numbers })
    }

    /// The cheapest pairs (map, mask), in order of masks. Every mask gets a map of its own, or every map a mask if there
    /// are fewer maps; then pairs that cost more than `match_max_cost` are left out.
    ///
    /// (The released code's `COST_THRESH` leaves out masks by the mean of their costs over all maps, and with them images
    /// in place of masks: it breaks off. A pair's own cost says whether the mask has found a map.)
    pub fn pairs(self) -> Result<Vec<(usize, usize)>> {
        let Some(costs) = self.costs else { return Ok(vec![]) };
        let costs = costs.wait()?;
        let mut pairs = assign(&costs);
        if let Some(limit) = self.limit {
            pairs.retain(|(map, mask)| f64::from(costs[*map][*mask]) <= limit);
        }
        if let Some(numbers) = &self.numbers {
            pairs.iter_mut().for_each(|(map, _)| *map = numbers[*map]);
        }
        Ok(pairs)
    }
}

/// The assignment of least total cost (scipy's `linear_sum_assignment`) for `costs[row][column]`, as (row, column) in
/// order of columns. Costs that are not finite count as the largest.
pub fn assign<C: Copy + Into<f64>>(costs: &[Vec<C>]) -> Vec<(usize, usize)> {
    let (rows, columns) = (costs.len(), costs.first().map_or(0, Vec::len));
    let values = || costs.iter().flatten().map(|&cost| cost.into());
    let largest = values().filter(|cost: &f64| cost.is_finite()).fold(0f64, |most, cost| most.max(cost.abs()));
    // Integers, so that sums are exact and ties are broken the same way everywhere.
    let unit = largest.max(f64::from(f32::MIN_POSITIVE)) / (1u64 << 50) as f64;
    let whole = |row: usize, column: usize| {
        let cost: f64 = costs[row][column].into();
        ((if cost.is_finite() { cost } else { largest }) / unit) as i64
    };
    let mut pairs: Vec<(usize, usize)> = if columns <= rows {
        let table = Matrix::from_fn(columns, rows, |(column, row)| whole(row, column));
        kuhn_munkres_min(&table).1.into_iter().enumerate().map(|(column, row)| (row, column)).collect()
    } else {
        let table = Matrix::from_fn(rows, columns, |(row, column)| whole(row, column));
        kuhn_munkres_min(&table).1.into_iter().enumerate().collect()
    };
    pairs.sort_by_key(|(_, column)| *column);
    pairs
}
