//! Whether masks beside pictures are black and white or labels.
use super::codec::labels::{Appearance, LabelMap};
use super::sources::findings::Findings;
use super::sources::shards::{SampleReference, SampleShard};
use super::sources::unusable::Unusable;
use crate::config::{DataConfig, DataFormat, MaskForm};
use crate::system::limits::IMAGE_FILE;
use crate::{Error, Result};
use std::ops::ControlFlow;

/// Maps by which it is decided whether they are black and white.
const LOOKED_AT: usize = 16;

/// Whether the masks of `shards`, which `config` is for, are black and white: as the configuration says, or as the first maps look.
///
/// # Errors
/// Some are black and white and others have labels; the machine cannot read them.
pub fn are_binary<'a>(config: &DataConfig, shards: impl Iterator<Item = &'a SampleShard>) -> Result<bool> {
    let has_labels = config.format != DataFormat::Folder || config.classes.is_some() || config.palette.is_some();
    if has_labels || config.masks != MaskForm::Auto {
        return Ok(config.masks == MaskForm::Binary);
    }
    let (mut looks, mut looked_at) = (Vec::new(), 0);
    for shard in shards {
        let flow = shard.scan(&mut Findings::default(), &mut |item| {
            let Ok(SampleReference { annotation: Some(member), shard, .. }) = &item else {
                return ControlFlow::Continue(());
            };
            match member.read(shard, IMAGE_FILE) {
                // What cannot be decoded is said where the sample is read.
                Ok(bytes) => {
                    looked_at += 1;
                    let file = member.path().unwrap_or(shard.path()).to_path_buf();
                    looks.extend(LabelMap::decode(&bytes).map(|map| (map.appearance(), file)));
                }
                Err(Unusable::Broken(_)) => {}
                Err(Unusable::Fatal(error)) => return ControlFlow::Break(Err(error)),
            }
            if looked_at < LOOKED_AT { ControlFlow::Continue(()) } else { ControlFlow::Break(Ok(())) }
        });
        if let Some(outcome) = flow.break_value() {
            outcome?;
            break;
        }
    }
    let first = |wanted| looks.iter().find(|(look, _)| *look == wanted).map(|(_, file)| file.display());
    match (first(Appearance::BlackAndWhite), first(Appearance::Labels)) {
        (Some(white), Some(labels)) => Err(Error::Usage(format!(
            "data.masks: {white} is black and white, and {labels} has other levels; set \"binary\" if white is what counts \
             in both, or \"labels\""
        ))),
        (white, _) => Ok(white.is_some()),
    }
}
