//! Plot of the expert block analysis: mIoU, attention between image and text, and value norms of each block.
use super::curves::short;
use super::picture;
use crate::eval::analysis::{Analysis, BlockAnalysis};
use crate::eval::blurring::Blurred;
use image::RgbImage;
use maud::{Markup, html};

/// Size of a panel in SVG units, and the plot's frame within it: left, right, top, bottom.
const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 190.0;
const FRAME: [f64; 4] = [40.0, WIDTH - 8.0, 30.0, HEIGHT - 34.0];
/// Styles of the SVG, for a file of its own and within a page.
const STYLE: &str = ".blocks text{font:11px system-ui,sans-serif;fill:#333}.blocks .title{font-weight:600}\
    .blocks .first{fill:#3b6fb6}.blocks .second{fill:#d98c3f}.blocks .expert{fill:#1d3f73}\
    .blocks .uniform{stroke:#777;stroke-dasharray:4 3}.blocks .axis{stroke:#999}\
    .blocks .y{text-anchor:end;dominant-baseline:auto}\
    .blocks .x{text-anchor:middle}";

/// One value for each block.
struct Series {
    name: &'static str,
    of: fn(&BlockAnalysis) -> Option<f64>,
    /// The value under uniform attention.
    uniform: Option<f64>,
}

/// Longer side of a picture in the sheet, and greatest number of pictures in a row.
const PICTURE: u32 = 192;
const PICTURES: usize = 8;

/// A row of pictures without blurring, and a row for each block with its attention blurred.
pub fn sheet(blurred: &Blurred) -> RgbImage {
    let rows = std::iter::once(&blurred.plain).chain(&blurred.by_block);
    picture::sheet_of_rows(PICTURE, rows.map(|pictures| pictures.iter().take(PICTURES)))
}

/// The plot as an SVG document.
pub fn svg(found: &Analysis) -> Markup {
    let series = |name, of, uniform| Series { name, of, uniform };
    let mut panels = vec![
        ("mIoU", vec![series("", |block| Some(block.miou), None)]),
        ("image→text attention", vec![series("", |b| Some(b.image_to_text), Some(found.uniform_image_to_text))]),
        ("text→image attention", vec![series("", |b| b.text_to_image, Some(found.uniform_text_to_image))]),
        (
            "norm of values",
            vec![
                series("image", |b| Some(b.image_value_norm), None),
                series("text", |b| Some(b.text_value_norm), None),
            ],
        ),
    ];
    if found.blocks.iter().any(|block| block.blurred_difference.is_some()) {
        panels.push(("change by blurred attention, of 255", vec![series("", |b| b.blurred_difference, None)]));
    }
    let (width, height) = (2.0 * WIDTH, panels.len().div_ceil(2) as f64 * HEIGHT);
    html! {
        svg.blocks xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (width) " " (height) } width=(width) height=(height) {
            style { (STYLE) }
            rect width="100%" height="100%" fill="#fff" {}
            @for (index, (title, series)) in panels.iter().enumerate() {
                g transform={ "translate(" ((index % 2) as f64 * WIDTH) " " ((index / 2) as f64 * HEIGHT) ")" } {
                    (panel(title, series, found))
                }
            }
        }
    }
}

fn panel(title: &str, series: &[Series], found: &Analysis) -> Markup {
    let [left, right, top, bottom] = FRAME;
    let values = |series: &Series| found.blocks.iter().filter_map(series.of).chain(series.uniform).collect::<Vec<_>>();
    let largest = series.iter().flat_map(values).fold(f64::MIN_POSITIVE, f64::max);
    let place = |value: f64| bottom - value / largest * (bottom - top);
    let slot = (right - left) / found.blocks.len() as f64;
    let bar = slot * 0.8 / series.len() as f64;
    // Every n-th block is labelled, as room permits.
    let labelled = (24.0 / slot).ceil().max(1.0) as usize;
    html! {
        text.title x=(left) y="16" {
            (title)
            @if series.len() > 1 { @for (index, one) in series.iter().enumerate() {
                tspan class=(class_of(index)) { " ■ " (one.name) }
            } }
        }
        text.y x=(left - 5.0) y=(top + 4.0) { (short(largest)) }
        text.y x=(left - 5.0) y=(bottom) { "0" }
        @for (index, one) in series.iter().enumerate() {
            @for block in &found.blocks {
                @if let Some(value) = (one.of)(block) {
                    @let x = left + slot * (block.block as f64 + 0.1) + bar * index as f64;
                    @let class = if block.block == found.expert && index == 0 { "expert" } else { class_of(index) };
                    rect class=(class) x=(fixed(x)) y=(fixed(place(value))) width=(fixed(bar))
                        height=(fixed(bottom - place(value))) { title { "block " (block.block) ": " (short(value)) } }
                }
            }
            @if let Some(uniform) = one.uniform {
                line.uniform x1=(left) x2=(right) y1=(fixed(place(uniform))) y2=(fixed(place(uniform))) {}
                text.y x=(right) y=(fixed(place(uniform) - 3.0)) { "uniform" }
            }
        }
        line.axis x1=(left) x2=(right) y1=(bottom) y2=(bottom) {}
        @for block in found.blocks.iter().filter(|block| block.block % labelled == 0) {
            text.x x=(fixed(left + slot * (block.block as f64 + 0.5))) y=(bottom + 14.0) { (block.block) }
        }
        text.x x=((left + right) / 2.0) y=(bottom + 28.0) { "block" }
    }
}

fn class_of(index: usize) -> &'static str {
    if index == 0 { "first" } else { "second" }
}

fn fixed(value: f64) -> String {
    format!("{value:.1}")
}
