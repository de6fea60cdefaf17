//! Images drawn by several models from equal prompts and noise.
use super::picture::data_uri;
use super::summary::Stage;
use crate::sample::image::write_png;
use crate::system::error::{Error, Result};
use image::RgbImage;
use maud::{Markup, html};
use std::path::Path;

/// Images of each model.
#[derive(Clone, Debug, Default)]
pub struct DrawnSamples {
    /// One prompt a picture.
    pub prompts: Vec<String>,
    /// For each model, its images in the order of the prompts.
    pub columns: Vec<(Stage, Vec<RgbImage>)>,
}

impl DrawnSamples {
    /// Whether there are no pictures.
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty() || self.columns.is_empty()
    }

    /// Writes `STAGE/000000.png` and so on into `folder`.
    ///
    /// # Errors
    /// A model's images do not match the prompts, or a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        for (stage, images) in &self.columns {
            if images.len() != self.prompts.len() {
                let (images, prompts) = (images.len(), self.prompts.len());
                return Err(Error::Failed(format!("{}: {images} samples of {prompts} prompts", stage.title())));
            }
            for (number, image) in images.iter().enumerate() {
                write_png(&folder.join(stage.key()).join(format!("{number:06}.png")), image)?;
            }
        }
        Ok(())
    }

    /// A figure for each prompt, with the models' images side by side.
    pub(super) fn figures(&self) -> Result<Markup> {
        Ok(html! {
            @for (number, prompt) in self.prompts.iter().enumerate() {
                figure.sample {
                    div.pair {
                        @for (stage, images) in &self.columns {
                            @if let Some(image) = images.get(number) {
                                div {
                                    img src=(data_uri(image)?) width=(image.width()) height=(image.height())
                                        alt={ "drawn by " (stage.title()) ": " (prompt) };
                                    span.label { (stage.title()) }
                                }
                            }
                        }
                    }
                    figcaption { (prompt) }
                }
            }
        })
    }
}
