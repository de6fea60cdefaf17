//! Settings of data, for a test to change.
use seg4diff::config::{Colour, Crop, DataConfig, DataFormat, MaskForm};
use std::path::Path;

/// Samples of these sources in their order, whole in the middle: 16 pixels, all masks, no flips, no broken sample, two
/// threads.
pub fn plain(format: DataFormat, sources: &[impl AsRef<Path>]) -> DataConfig {
    DataConfig {
        format,
        source: sources.iter().map(|source| source.as_ref().to_str().expect("UTF-8").to_owned()).collect(),
        sources: vec![],
        retry_seconds: 0,
        plain_http: false,
        captions: None,
        caption_key_column: "key".into(),
        caption_column: "caption".into(),
        resolution: 16,
        crop: Crop::Center,
        background: Colour([255; 3]),
        caption_sentences: 0,
        caption_dropout: 0.0,
        min_mask_area: 0.0,
        max_masks: 32,
        labels: None,
        panoptic: None,
        instances: None,
        classes: None,
        masks: MaskForm::Auto,
        palette: None,
        ignore: 255,
        flip: false,
        shuffle_buffer: 1,
        cache: None,
        workers: 2,
        max_broken: 0.0,
        allow: vec![],
        has_prompts: true,
    }
}
