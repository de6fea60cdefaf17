//! What became of the masks of some samples, and whether any has an effect.
use crate::config::DataConfig;
use crate::data::Mask;
use crate::data::decode::DecodedSample;
use std::collections::BTreeSet;
use std::ops::Range;

/// Counts of masks by what became of them.
#[derive(Default)]
pub struct MaskCensus {
    samples: u64,
    /// Masks that have an effect.
    used: u64,
    /// What keeps others from it, in the order of [`REASONS`]: how many, and the first sample.
    unused: [(u64, String); REASONS.len()],
    /// The first sample's masks, as long as all others' are equal.
    equal: Option<Vec<Mask>>,
    keys: BTreeSet<String>,
}

/// Why masks have no effect.
const REASONS: [&str; 7] = [
    "cover the whole picture",
    "have no pixel in the training picture",
    "are smaller than data.min_mask_area",
    "are label maps of data.ignore and background alone",
    "are label maps without a label that has a name",
    "are missing or have no mask",
    "have no word in the prompt, or one behind its last token",
];

impl MaskCensus {
    /// Counts a sample, whose class names have these `spans` of tokens. With prompts, a mask without a word has no effect.
    pub fn add(&mut self, decoded: &DecodedSample, spans: &[Option<Range<usize>>], has_prompts: bool) {
        let (sample, fates) = (&decoded.sample, &decoded.fates);
        let is_full = |mask: &Mask| mask.area() == mask.width() * mask.height();
        let has_word = |mask: &Mask| match mask.class {
            Some(class) => spans.get(class).is_none_or(Option::is_some),
            None => !has_prompts || !sample.prompt.is_empty(),
        };
        let cut = sample.masks.iter().filter(|mask| !is_full(mask) && !has_word(mask)).count() as u64;
        self.used += fates.used - cut;
        let counts = [fates.full, fates.empty, fates.small, fates.ignored, fates.unnamed, fates.absent, cut];
        for ((unused, first), count) in self.unused.iter_mut().zip(counts) {
            if count > 0 && *unused == 0 {
                first.clone_from(&sample.key);
            }
            *unused += count;
        }
        match &self.equal {
            None if self.samples == 0 => self.equal = Some(sample.masks.clone()),
            Some(masks) if *masks != sample.masks => self.equal = None,
            _ => {}
        }
        self.samples += 1;
        self.keys.insert(sample.key.clone());
    }

    /// What is wrong with all masks; of `enough` pictures, that they are equal, too.
    pub fn problem(&self, enough: u64, data: &DataConfig) -> Option<String> {
        let samples = self.samples;
        if samples == 0 {
            return None;
        }
        let accept =
            "mend them, train without masks (loss weights of 0), or accept it by data.allow = [\"masks_unused\"]";
        if self.used > 0 {
            let is_equal = self.equal.is_some() && self.keys.len() as u64 >= enough;
            return is_equal.then(|| format!("the masks of the first {samples} samples are all equal; {accept}"));
        }
        let ignore = match self.unused[3].0 {
            0 => String::new(),
            _ => format!(" (data.ignore = {}; black-and-white masks: data.masks = \"binary\")", data.ignore),
        };
        let reasons = self.reasons();
        Some(format!("none of the first {samples} samples has a usable mask: {reasons}{ignore}; {accept}"))
    }

    /// A line for people on masks of a `kind`; `None` without samples.
    pub fn line(&self, kind: &str) -> Option<String> {
        let reasons = self.reasons();
        let reasons = if reasons.is_empty() { reasons } else { format!("; {reasons}") };
        (self.samples > 0).then(|| format!("first {} samples: {}{kind} masks used{reasons}", self.samples, self.used))
    }

    fn reasons(&self) -> String {
        let found = self.unused.iter().zip(REASONS).filter(|((count, _), _)| *count > 0);
        found.map(|((count, first), what)| format!("{count} {what} (first {first})")).collect::<Vec<_>>().join(", ")
    }
}
