//! Polygons as COCO's annotations have them, drawn to the pixel as pycocotools draws them (`maskApi.c`: `rleFrPoly`).
use super::rle::{RunLengths, checked_size};

/// Points along the boundary are this much denser than pixels.
const SCALE: f64 = 5.0;

/// The most such points: a hundred times around the largest picture.
const POINTS: i64 = 1 << 24;

/// The mask of `height` × `width` pixels inside the polygon `x, y, x, y, …`.
///
/// # Errors
/// The mask has no pixels or too many, or the polygon has fewer than three points or is absurdly large.
pub fn draw(height: u64, width: u64, polygon: &[f64]) -> Result<RunLengths, String> {
    let (height, width, total) = checked_size(height, width)?;
    if polygon.len() < 6 || !polygon.len().is_multiple_of(2) {
        let numbers = polygon.len();
        return Err(format!("a polygon has {numbers} numbers, expected x and y of at least three points"));
    }
    let mut points = Vec::with_capacity(polygon.len() / 2 + 1);
    for number in polygon {
        if !(number * SCALE).is_finite() || (number * SCALE).abs() >= POINTS as f64 {
            return Err(format!("a polygon has the coordinate {number}, far outside of the {height}×{width} mask"));
        }
    }
    // As C converts to whole numbers: towards zero.
    points.extend(polygon.chunks_exact(2).map(|point| [0, 1].map(|axis| (SCALE * point[axis] + 0.5) as i64)));
    points.push(points[0]);
    let lengths =
        points.windows(2).map(|pair| (pair[0][0] - pair[1][0]).abs().max((pair[0][1] - pair[1][1]).abs()) + 1);
    if lengths.sum::<i64>() > POINTS {
        return Err(format!("a polygon's boundary is too long for a {height}×{width} mask"));
    }
    // Where the boundary passes a column's centre, the column turns from outside to inside or back.
    let mut crossings: Vec<u64> = Vec::new();
    let mut last: Option<[i64; 2]> = None;
    for pair in points.windows(2) {
        along(pair[0], pair[1], |point| {
            let [x, y] = point;
            if let Some([last_x, last_y]) = last.replace(point)
                && x != last_x
            {
                let column = if x < last_x { x } else { x - 1 };
                let column = (column as f64 + 0.5) / SCALE - 0.5;
                if column.floor() == column && column >= 0.0 && column <= f64::from(width - 1) {
                    let row = (y.min(last_y) as f64 + 0.5) / SCALE - 0.5;
                    let row = row.clamp(0.0, f64::from(height)).ceil();
                    crossings.push(column as u64 * u64::from(height) + row as u64);
                }
            }
        });
    }
    crossings.sort_unstable();
    crossings.push(total);
    let mut counts: Vec<u64> = Vec::with_capacity(crossings.len());
    let mut place = 0;
    let mut steps = crossings.iter().map(|&crossing| crossing - std::mem::replace(&mut place, crossing));
    counts.extend(steps.next());
    while let Some(step) = steps.next() {
        match counts.last_mut().filter(|_| step == 0) {
            // Two crossings at one place: the run before goes on.
            Some(run) => *run += steps.next().unwrap_or(0),
            None => counts.push(step),
        }
    }
    RunLengths::from_counts(u64::from(height), u64::from(width), &counts)
}

/// Calls `visit` with the points of a line, both ends included, in steps of one along its longer axis.
fn along(from: [i64; 2], to: [i64; 2], mut visit: impl FnMut([i64; 2])) {
    let (dx, dy) = ((to[0] - from[0]).abs(), (to[1] - from[1]).abs());
    let axis = usize::from(dx < dy);
    let length = dx.max(dy);
    // The slope is taken from the lower end, so that a line has the same points in both directions.
    let is_flipped = from[axis] > to[axis];
    let (low, high) = if is_flipped { (to, from) } else { (from, to) };
    let slope = if length == 0 { 0.0 } else { (high[1 - axis] - low[1 - axis]) as f64 / length as f64 };
    for step in 0..=length {
        let step = if is_flipped { length - step } else { step };
        let mut point = [0; 2];
        point[axis] = low[axis] + step;
        point[1 - axis] = (low[1 - axis] as f64 + slope * step as f64 + 0.5) as i64;
        visit(point);
    }
}
