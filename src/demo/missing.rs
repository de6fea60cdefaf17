//! Draws the demo's scenes that a configuration needs and that do not exist yet.
use crate::config::ScenesConfig;
use crate::demo::{SceneOptions, Split, write_missing};
use crate::report::progress::Progress;
use crate::system::error::Result;

/// Draws the missing sets of scenes; takes seconds.
///
/// # Errors
/// A set exists but holds other scenes (`Error::Usage`), or cannot be written.
pub fn draw_missing(config: &ScenesConfig) -> Result<()> {
    for set in config.sets() {
        let split = if set.held_out { Split::Val } else { Split::Train };
        let options = SceneOptions { seed: set.seed, split, size: config.size };
        let mut progress = None;
        write_missing(&set.folder, set.count, options, |done| {
            let progress = progress.get_or_insert_with(|| Progress::new("scene", 0, set.count));
            progress.update(done, &set.folder.display().to_string());
        })?;
    }
    Ok(())
}
