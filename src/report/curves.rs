//! A run's training curves as SVG panels: each step in a faint line, the running mean on top.
//!
//! Drawn here: the crates that plot bring fonts and several times this file's code for two polylines and a grid.
use super::metrics::{StepMetrics, ValidationScores};
use maud::{Markup, html};
use std::fmt::Write;

/// Size of a panel in SVG units; the page scales it.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 168.0;
/// The plot's frame within the panel: left, right, top, bottom.
const FRAME: [f64; 4] = [44.0, WIDTH - 14.0, 8.0, HEIGHT - 22.0];
/// Greatest number of points in a curve.
const POINTS: usize = 240;
/// Window of the running mean as a fraction of the run.
const SMOOTHED_SHARE: f64 = 0.1;
/// Fraction of the values at each end that may be outside the axis.
const OUTLIERS: f64 = 0.005;

/// The quantity that a panel plots.
struct Curve {
    title: &'static str,
    value: fn(&StepMetrics) -> f64,
    /// Whether to plot the running mean on top.
    noisy: bool,
}

const CURVES: [Curve; 7] = [
    Curve { title: "loss, weighted sum", value: |m| m.loss, noisy: true },
    Curve { title: "flow loss", value: |m| m.flow, noisy: true },
    Curve { title: "alignment loss", value: |m| m.align.unwrap_or(0.0), noisy: true },
    Curve { title: "focal loss", value: |m| m.focal, noisy: true },
    Curve { title: "dice loss", value: |m| m.dice, noisy: true },
    Curve { title: "learning rate of the LoRA", value: |m| m.lora_lr.unwrap_or(m.lr), noisy: false },
    Curve { title: "gradient norm, before clipping", value: |m| m.grad_norm, noisy: true },
];

/// Speed, or its inverse if most steps are slower than one image a second.
const SPEED: Curve = Curve { title: "images a second", value: |m| m.images_per_s, noisy: true };
const SLOWNESS: Curve = Curve { title: "seconds an image", value: |m| 1.0 / m.images_per_s, noisy: true };

const VALIDATION: [Curve; 3] = [
    Curve { title: "mIoU, held out", value: |m| validated(m, |scores| scores.miou), noisy: false },
    Curve { title: "pixel accuracy, held out", value: |m| validated(m, |scores| scores.pixel_accuracy), noisy: false },
    Curve { title: "flow loss, held out", value: |m| validated(m, |scores| scores.held_out_flow), noisy: false },
];

fn validated(step: &StepMetrics, of: impl Fn(&ValidationScores) -> Option<f64>) -> f64 {
    step.validation.as_ref().and_then(of).unwrap_or(f64::NAN)
}

/// A panel for each quantity of the run, except loss terms that are zero throughout.
pub fn panels(steps: &[StepMetrics]) -> Markup {
    let slow = steps.iter().filter(|step| step.images_per_s < 1.0).count();
    let speed = if 2 * slow > steps.len() { &SLOWNESS } else { &SPEED };
    let curves = CURVES.iter().chain([speed]).filter_map(|curve| panel(curve, steps));
    html! { @for curve in curves { (curve) } }
}

/// A panel for each validation score.
pub fn validation_panels(steps: &[StepMetrics]) -> Markup {
    let curves = VALIDATION.iter().filter_map(|curve| {
        let measured: Vec<StepMetrics> = steps.iter().filter(|step| (curve.value)(step).is_finite()).cloned().collect();
        panel(curve, &measured)
    });
    html! { @for curve in curves { (curve) } }
}

/// Window of the running mean in steps, an odd number.
pub fn smoothed_steps(steps: usize) -> usize {
    (steps as f64 * SMOOTHED_SHARE / 2.0).round() as usize * 2 + 1
}

fn panel(curve: &Curve, steps: &[StepMetrics]) -> Option<Markup> {
    let values: Vec<f64> = steps.iter().map(curve.value).collect();
    let mean = if curve.noisy { running_mean(&values, smoothed_steps(values.len())) } else { values.clone() };
    let known = || steps.iter().zip(&mean).filter(|(_, mean)| mean.is_finite());
    let ((first, first_mean), (last, last_mean)) = (known().next()?, known().next_back()?);
    if values.iter().all(|value| *value == 0.0) {
        return None;
    }
    let x = ChartAxis::new(first.step as f64, last.step as f64, FRAME[0], FRAME[1]);
    let (least, most) = range(&values, &mean)?;
    let y = ChartAxis::new(least, most, FRAME[3], FRAME[2]);
    let number: Vec<f64> = steps.iter().map(|step| step.step as f64).collect();
    let (title, from, to) = (curve.title, short(*first_mean), short(*last_mean));
    let description = format!("{title}: {from} at step {}, {to} at step {}", first.step, last.step);
    let clip = format!("clip-{}", title.replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
    Some(html! {
        figure.panel {
            figcaption { span { (title) } b { (to) } }
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(description) {
                clipPath id=(clip) {
                    rect x=(FRAME[0]) y=(FRAME[2]) width=(FRAME[1] - FRAME[0]) height=(FRAME[3] - FRAME[2]) {}
                }
                @for (value, place) in y.ticks(5) {
                    line.grid x1=(FRAME[0]) x2=(FRAME[1]) y1=(place) y2=(place) {}
                    text.y x=(FRAME[0] - 6.0) y=(place) { (value) }
                }
                @for (value, place) in x.ticks(5).into_iter().filter(|(value, _)| !value.contains('.')) {
                    text.x x=(place) y=(HEIGHT - 6.0) { (value) }
                }
                line.axis x1=(FRAME[0]) x2=(FRAME[1]) y1=(FRAME[3]) y2=(FRAME[3]) {}
                g clip-path={ "url(#" (clip) ")" } {
                    @if curve.noisy { path.raw d=(line(&every_extreme(&number, &values), &x, &y)) {} }
                    path.mean d=(line(&thinned(&number, &mean), &x, &y)) {}
                }
            }
        }
    })
}

/// Centred running means over `window` values, shorter at the ends; values that are not finite are left out.
fn running_mean(values: &[f64], window: usize) -> Vec<f64> {
    let mut sums = vec![(0.0, 0u32)];
    let (mut sum, mut count) = (0.0, 0);
    for value in values.iter() {
        if value.is_finite() {
            (sum, count) = (sum + value, count + 1);
        }
        sums.push((sum, count));
    }
    let mean = |index: usize| {
        let (from, to) = (index.saturating_sub(window / 2), (index + window / 2 + 1).min(values.len()));
        let count = sums[to].1 - sums[from].1;
        if count == 0 { f64::NAN } else { (sums[to].0 - sums[from].0) / f64::from(count) }
    };
    (0..values.len()).map(mean).collect()
}

/// The range of the axis: all of the means, and the values except outliers.
fn range(values: &[f64], mean: &[f64]) -> Option<(f64, f64)> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let outliers = (sorted.len() as f64 * OUTLIERS) as usize;
    let (mut least, mut most) = (*sorted.get(outliers)?, *sorted.get(sorted.len() - 1 - outliers)?);
    for value in mean.iter().filter(|value| value.is_finite()) {
        (least, most) = (least.min(*value), most.max(*value));
    }
    Some((least, most))
}

/// The last point of each of at most `POINTS` intervals.
fn thinned(x: &[f64], y: &[f64]) -> Vec<(f64, f64)> {
    let stretch = x.len().div_ceil(POINTS).max(1);
    x.chunks(stretch).zip(y.chunks(stretch)).filter_map(|(x, y)| Some((*x.last()?, *y.last()?))).collect()
}

/// The least and greatest value of each of at most `POINTS` intervals, which preserves spikes.
fn every_extreme(x: &[f64], y: &[f64]) -> Vec<(f64, f64)> {
    let stretch = x.len().div_ceil(POINTS).max(1);
    if stretch == 1 {
        return x.iter().copied().zip(y.iter().copied()).collect();
    }
    let extremes = |(x, y): (&[f64], &[f64])| {
        let points = || x.iter().copied().zip(y.iter().copied()).filter(|(_, y)| y.is_finite());
        let least = points().min_by(|a, b| a.1.total_cmp(&b.1));
        let most = points().max_by(|a, b| a.1.total_cmp(&b.1));
        let mut found: Vec<_> = least.into_iter().chain(most).collect();
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        found
    };
    x.chunks(stretch).zip(y.chunks(stretch)).flat_map(extremes).collect()
}

/// An SVG path through the points, with gaps at values that are not finite.
fn line(points: &[(f64, f64)], x: &ChartAxis, y: &ChartAxis) -> String {
    let mut path = String::new();
    let mut pen_is_up = true;
    for (across, up) in points {
        if up.is_finite() {
            // Writing to a string does not fail. The zero-length line `h0` draws isolated points as dots.
            let (across, up) = (x.place(*across), y.place(*up));
            let _ = match pen_is_up {
                true => write!(path, "M{across:.1} {up:.1}h0"),
                false => write!(path, "L{across:.1} {up:.1}"),
            };
        }
        pen_is_up = !up.is_finite();
    }
    path
}

/// A linear axis from values to coordinates in the panel.
struct ChartAxis {
    least: f64,
    most: f64,
    from: f64,
    to: f64,
}

impl ChartAxis {
    fn new(least: f64, most: f64, from: f64, to: f64) -> Self {
        // A curve that is constant up to rounding is centred.
        let size = least.abs().max(most.abs());
        let flat = if most - least > size * 1e-9 { 0.0 } else { (size * 0.1).max(f64::MIN_POSITIVE) };
        Self { least: least - flat, most: most + flat, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        self.from + (value - self.least) / (self.most - self.least) * (self.to - self.from)
    }

    /// About `count` round values with their coordinates.
    fn ticks(&self, count: usize) -> Vec<(String, f64)> {
        let rough = (self.most - self.least) / count as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        let (first, last) = ((self.least / step).ceil() as i64, (self.most / step).floor() as i64);
        (first..=last).map(|index| index as f64 * step).map(|v| (round(v, step), self.place(v))).collect()
    }
}

/// A multiple of `step` with as many decimal places as it needs.
fn round(value: f64, step: f64) -> String {
    let places = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
    if value == 0.0 {
        "0".into()
    } else if places > 3 && value.abs() < 1e3 * step || value.abs() >= 1e6 {
        exponential(value)
    } else {
        format!("{value:.places$}")
    }
}

/// Three significant digits.
pub(super) fn short(value: f64) -> String {
    let exponent = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    match exponent {
        -2..=5 => format!("{value:.*}", (2 - exponent).clamp(0, 4) as usize),
        _ => exponential(value),
    }
}

/// Scientific notation with up to three significant digits, such as `2.5e-5`.
fn exponential(value: f64) -> String {
    let text = format!("{value:.2e}");
    match text.split_once('e') {
        Some((digits, exponent)) => format!("{}e{exponent}", digits.trim_end_matches('0').trim_end_matches('.')),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(steps: u64) -> Vec<StepMetrics> {
        let noise = |step: u64| (step * 7919 % 101) as f64 / 101.0;
        let metrics = |step| StepMetrics {
            step,
            loss: 1.0 + noise(step) / 10.0,
            flow: 0.5,
            lr: 1e-4,
            grad_norm: noise(step),
            ..Default::default()
        };
        (1..=steps).map(metrics).collect()
    }

    #[test]
    fn ticks_are_round_and_lie_within() {
        let labels = |least, most| -> Vec<String> {
            ChartAxis::new(least, most, 0.0, 1.0).ticks(4).into_iter().map(|(label, _)| label).collect()
        };
        assert_eq!(labels(0.0, 1.0), ["0", "0.5", "1.0"]);
        assert_eq!(labels(0.244, 0.262), ["0.245", "0.250", "0.255", "0.260"]);
        assert_eq!(labels(0.0, 1e-4), ["0", "5e-5", "1e-4"]);
        assert_eq!(labels(0.51271, 0.51362), ["0.5130", "0.5135"]);
        assert_eq!(labels(1.0, 1000.0), ["500", "1000"]);
        assert_eq!(labels(-3.0, 12.0), ["0", "5", "10"]);
        assert!(!labels(0.0, 0.0).is_empty() && labels(0.1, 0.1 + 1e-17).len() > 1);
    }

    #[test]
    fn means_pass_over_what_is_not_finite() {
        assert_eq!(running_mean(&[1.0, 2.0, 6.0, f64::NAN, 4.0], 3), [1.5, 3.0, 4.0, 5.0, 4.0]);
        assert!(running_mean(&[f64::NAN], 1)[0].is_nan());
    }

    #[test]
    fn a_long_run_takes_no_more_room_than_a_short_one() {
        let size = |steps| panels(&run(steps)).into_string().len();
        assert!(size(100_000) < 3 * size(240), "{} {}", size(100_000), size(240));
        let mut steps = run(100_000);
        steps[50_000].grad_norm = 1e9;
        let (x, y): (Vec<_>, Vec<_>) = steps.iter().map(|s| (s.step as f64, s.grad_norm)).unzip();
        assert!(every_extreme(&x, &y).contains(&(50_001.0, 1e9)));
        // The one spike does not flatten the curve.
        assert!(range(&y, &y[..100]).is_some_and(|(_, most)| most < 2.0));
    }

    #[test]
    fn only_what_a_run_has_is_shown() {
        let shown = panels(&run(40)).into_string();
        assert_eq!(shown.matches("<svg").count(), 4, "{shown}");
        assert!(!shown.contains("NaN") && !shown.contains("inf"), "{shown}");
        assert!(shown.contains("flow loss: 0.500 at step 1, 0.500 at step 40"), "{shown}");
        assert_eq!(panels(&[]).into_string(), "");
        let lost = StepMetrics { step: 1, loss: f64::NAN, grad_norm: f64::INFINITY, ..Default::default() };
        assert_eq!(panels(&[lost]).into_string(), "");
        assert_eq!(panels(&run(1)).into_string().matches("<svg").count(), 4);
    }

    #[test]
    fn a_slow_run_shows_the_time_of_an_image() {
        let shown = |images_per_s| {
            let steps: Vec<_> = run(3).into_iter().map(|step| StepMetrics { images_per_s, ..step }).collect();
            panels(&steps).into_string()
        };
        assert!(shown(4.0).contains("images a second: 4.00 at step 1") && !shown(4.0).contains("seconds an image"));
        assert!(shown(0.005).contains("seconds an image: 200 at step 1") && !shown(0.005).contains("images a second"));
    }

    #[test]
    fn a_step_that_was_lost_is_a_gap() {
        let axis = ChartAxis::new(0.0, 10.0, 0.0, 10.0);
        let points = [(0.0, 1.0), (1.0, 2.0), (2.0, f64::NAN), (3.0, 4.0)];
        assert_eq!(line(&points, &axis, &axis), "M0.0 1.0h0L1.0 2.0M3.0 4.0h0");
    }
}
