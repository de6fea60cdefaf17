//! Scores before and after training: `summary.json` for programs, the final table for people.
use crate::system::error::{Error, Result};
use crate::system::whole_file::write_atomically;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The model that scores belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The base model, before training.
    Before,
    /// The base model with the trained LoRA.
    After,
    /// The base model with a LoRA trained as long on the flow loss alone.
    WithoutMasks,
}

impl Stage {
    /// All stages, in the order of the table.
    pub const ALL: [Self; 3] = [Self::Before, Self::After, Self::WithoutMasks];

    /// Name in files and keys.
    pub fn key(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
            Self::WithoutMasks => "without_masks",
        }
    }

    /// Name for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Before => "base",
            Self::After => "after",
            Self::WithoutMasks => "without masks",
        }
    }
}

/// One model's scores on held-out data; absent if not measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Scores {
    /// Mean intersection over union of open-vocabulary segmentation, from 0 to 1.
    #[serde(skip_serializing_if = "is_absent")]
    pub miou: Option<f64>,
    /// Fraction of labelled pixels that are predicted correctly, from 0 to 1.
    #[serde(skip_serializing_if = "is_absent")]
    pub pixel_accuracy: Option<f64>,
    /// Fréchet distance between features of the demo's classifier; not comparable with FID.
    #[serde(skip_serializing_if = "is_absent")]
    pub fd_demo: Option<f64>,
    /// Fréchet inception distance.
    #[serde(skip_serializing_if = "is_absent")]
    pub fid: Option<f64>,
    /// Kernel inception distance.
    #[serde(skip_serializing_if = "is_absent")]
    pub kid: Option<f64>,
    /// Flow-matching loss on held-out images, with fixed noise.
    #[serde(skip_serializing_if = "is_absent")]
    pub held_out_flow: Option<f64>,
    /// Intersection over union of each class by name, from 0 to 1.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub per_class: BTreeMap<String, f64>,
}

/// Treats numbers that are not finite as not measured.
fn is_absent(value: &Option<f64>) -> bool {
    !value.is_some_and(f64::is_finite)
}

/// The scores of a run's models, the base model first.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary(pub BTreeMap<Stage, Scores>);

/// A kind of score.
pub struct Metric {
    /// The name that is printed and written, such as `fid`.
    pub name: &'static str,
    /// Whether a larger value is better.
    pub higher_is_better: bool,
    /// Whether the score is a fraction: in percent, differences in percentage points. Those of other scores are in percent of
    /// the base model's score.
    pub is_share: bool,
    get: fn(&Scores) -> Option<f64>,
}

/// All scores in the order of the table's columns.
pub const METRICS: [Metric; 6] = [
    Metric { name: "mIoU", higher_is_better: true, is_share: true, get: |s| s.miou },
    Metric { name: "pixel accuracy", higher_is_better: true, is_share: true, get: |s| s.pixel_accuracy },
    Metric { name: "FD-demo", higher_is_better: false, is_share: false, get: |s| s.fd_demo },
    Metric { name: "FID", higher_is_better: false, is_share: false, get: |s| s.fid },
    Metric { name: "KID", higher_is_better: false, is_share: false, get: |s| s.kid },
    Metric { name: "held-out flow loss", higher_is_better: false, is_share: false, get: |s| s.held_out_flow },
];

impl Metric {
    /// The value, if measured and finite.
    pub fn of(&self, scores: &Scores) -> Option<f64> {
        (self.get)(scores).filter(|value| value.is_finite())
    }

    /// Formats a value.
    pub fn show(&self, value: f64) -> String {
        if self.is_share { percent(value) } else { significant(value) }
    }

    /// Formats the difference from the base model's score: `+5.3` points, or `+0.8 %`; `None` if the base's is 0.
    pub fn difference(&self, value: f64, base: f64) -> Option<String> {
        match self.is_share {
            true => Some(signed(100.0 * (value - base), "")),
            false => (base != 0.0).then(|| signed(100.0 * (value - base) / base.abs(), " %")),
        }
    }

    /// Whether `value` is better than the base model's; `None` if both are formatted alike.
    pub fn is_better(&self, value: f64, base: f64) -> Option<bool> {
        let differs =
            self.difference(value, base).is_some_and(|text| text.contains(|c: char| ('1'..='9').contains(&c)));
        differs.then_some((value > base) == self.higher_is_better)
    }
}

/// A fraction in percent: `54.9 %`.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// With sign and one decimal place.
fn signed(value: f64, unit: &str) -> String {
    let text = format!("{:.1}", value.abs());
    let sign = if text == "0.0" {
        '±'
    } else if value < 0.0 {
        '−'
    } else {
        '+'
    };
    format!("{sign}{text}{unit}")
}

/// Four significant digits in decimal notation, with at most nine decimal places.
fn significant(value: f64) -> String {
    let exponent = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    format!("{value:.*}", (3 - exponent).clamp(0, 9) as usize)
}

impl Summary {
    /// The scores that any model has, in column order.
    pub fn metrics(&self) -> Vec<&'static Metric> {
        let is_measured = |metric: &&Metric| self.0.values().any(|scores| metric.of(scores).is_some());
        METRICS.iter().filter(is_measured).collect()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.metrics().is_empty()
    }

    /// The base model's score.
    pub fn base(&self, metric: &Metric) -> Option<f64> {
        metric.of(self.0.get(&Stage::Before)?)
    }

    /// Writes `summary.json` atomically.
    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::file(file, e))?;
        write_atomically(file, |out| writeln!(out, "{text}"))
    }

    /// The final table: a row for each model, a column for each score, with differences from the base model.
    pub fn table(&self) -> String {
        let metrics = self.metrics();
        let mut rows = vec![[""].into_iter().chain(metrics.iter().map(|m| m.name)).map(String::from).collect()];
        for (&stage, scores) in &self.0 {
            let mut row = vec![stage.title().to_string()];
            row.extend(metrics.iter().map(|metric| self.cell(metric, stage, scores)));
            rows.push(row);
        }
        align(&rows)
    }

    fn cell(&self, metric: &Metric, stage: Stage, scores: &Scores) -> String {
        let Some(value) = metric.of(scores) else { return "-".into() };
        let base = self.base(metric).filter(|_| stage != Stage::Before);
        match base.and_then(|base| metric.difference(value, base)) {
            Some(difference) => format!("{} ({difference})", metric.show(value)),
            None => metric.show(value),
        }
    }
}

/// Formats rows of cells as lines with aligned columns.
fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).filter_map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("   ").trim_end().to_string()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_with_four_digits() {
        for (value, text) in
            [(12.3456, "12.35"), (0.254_71, "0.2547"), (1234.5, "1234"), (0.0, "0.000"), (0.000_123_4, "0.0001234")]
        {
            assert_eq!(significant(value), text);
        }
    }

    #[test]
    fn better_knows_its_direction() {
        let [miou, _, fd, ..] = &METRICS;
        assert_eq!((miou.is_better(0.6, 0.5), fd.is_better(0.6, 0.5)), (Some(true), Some(false)));
        assert_eq!(miou.is_better(0.500_01, 0.5), None);
        assert_eq!(fd.difference(9.0, 10.0).as_deref(), Some("−10.0 %"));
        assert_eq!(fd.difference(9.999, 10.0).as_deref(), Some("±0.0 %"));
        assert_eq!(fd.difference(9.0, 0.0), None);
    }
}
