//! The page and the contact sheet of `seg4diff inspect`: the first samples of a training.
use super::page::{document, facts};
use super::picture::sheet_of_rows;
use super::training_sample::{SampleDrawer, SampleFigure, how_to_read};
use crate::data::Sample;
use crate::sample::image::write_png;
use crate::system::error::Result;
use crate::system::whole_file::write_atomically;
use image::RgbImage;
use maud::{Markup, html};
use std::path::Path;

/// Side of a picture in the sheet, and number of samples in a row.
const CELL: u32 = 192;
const SAMPLES: usize = 4;

/// The first samples of a training.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The config file's name.
    pub config: String,
    /// Facts about the data, as pairs of name and value.
    pub facts: Vec<(&'static str, String)>,
    figures: Vec<SampleFigure>,
    /// Of each sample the picture and its masks, at the sheet's size.
    cells: Vec<[RgbImage; 2]>,
}

impl Inspection {
    /// An inspection without samples.
    pub fn new(config: String, facts: Vec<(&'static str, String)>) -> Self {
        Self { config, facts, figures: vec![], cells: vec![] }
    }

    /// Draws and adds the next sample.
    ///
    /// # Errors
    /// Those of [`SampleDrawer::draw`].
    pub fn add(&mut self, drawer: &SampleDrawer, sample: &Sample) -> Result<()> {
        self.figures.push(drawer.draw(sample, self.figures.len() as u64)?);
        self.cells.push(drawer.pictures(sample, CELL)?);
        Ok(())
    }

    /// Number of samples.
    pub fn count(&self) -> usize {
        self.figures.len()
    }

    /// Writes `inspect.html` and `inspect.png` into `folder`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_png(&folder.join("inspect.png"), &self.sheet())?;
        let page = self.page().into_string();
        write_atomically(&folder.join("inspect.html"), |out| out.write_all(page.as_bytes()))
    }

    /// All samples in one picture, four a row, each with its masks to the right.
    fn sheet(&self) -> RgbImage {
        sheet_of_rows(CELL, self.cells.chunks(SAMPLES).map(|row| row.iter().flatten()))
    }

    fn page(&self) -> Markup {
        let count = self.count();
        let with_notes = self.figures.iter().filter(|figure| !figure.notes.is_empty()).count();
        let header = html! {
            p.kind { "seg4diff inspect" }
            h1 { (self.config) }
            p.state {
                b { @if count == 1 { "The first sample" } @else { "The first " (count) " samples" } }
                " of the training, as it sees them."
                @if with_notes > 0 { " Of these, " (with_notes) " have a remark in red." }
            }
        };
        document(
            &self.config,
            header,
            html! {
                section #data { (facts(&self.facts)) }
                section #samples {
                    h2 { "Samples" }
                    (how_to_read())
                    @for figure in &self.figures { (figure.markup()) }
                }
            },
        )
    }
}
