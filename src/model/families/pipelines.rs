//! The families' pipelines in the diffusers layout.
use super::names::KohyaNames;
use super::original::Original;
use crate::config::{Choice, TextEncoderKind};

/// A family's pipeline in the diffusers layout: what is known of it before any of its networks is.
#[derive(Debug)]
pub struct PipelineNames {
    /// The family for people, such as `SD3`.
    pub name: &'static str,
    /// `_class_name` in `model_index.json`.
    pub class: &'static str,
    /// `_class_name` in `transformer/config.json`, as diffusers writes it.
    pub transformer_class: &'static str,
    /// Its text encoders.
    pub encoders: &'static [EncoderFolders],
    /// Those of them that are used where none are named.
    pub usual_encoders: &'static [TextEncoderKind],
    /// Tokens of T5 or Qwen3 in diffusers' pipeline call, where no number is given.
    pub max_sequence_length: usize,
    /// Denoising steps there.
    pub steps: usize,
    /// What the text encoders' outputs become.
    pub text: TextForm,
    /// The most of the leading text tokens that can be word tokens.
    pub words: usize,
    /// Keys of `transformer/config.json` that say how many blocks of a kind there are.
    pub block_counts: &'static [&'static str],
    /// Side of the square of latents that is packed before the transformer's own patches are cut.
    pub packed_side: usize,
    /// How a sampler's noise levels are spaced before they are shifted.
    pub sigma_spacing: SigmaSpacing,
    /// Names of the layers in the original checkpoint, as kohya's trainer and ComfyUI have them.
    pub kohya: &'static KohyaNames,
    /// Its models in one file; none where these are not read.
    pub original: Option<&'static Original>,
}

/// Where a text encoder lies.
#[derive(Debug)]
pub struct EncoderFolders {
    /// Which one.
    pub kind: TextEncoderKind,
    /// Its folder.
    pub encoder: &'static str,
    /// That of its tokenizer.
    pub tokenizer: &'static str,
}

/// What text encoders' outputs become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextForm {
    /// Tokens: the CLIPs' last hidden states but one, side by side, then T5's or zeros in their place. Pooled: the CLIPs'
    /// projections, side by side. Words are the first CLIP's tokens.
    ClipsThenT5,
    /// Tokens: T5's. Pooled: CLIP-L's last state of the end token, normed and not projected. Words are T5's tokens.
    T5,
    /// Tokens: Qwen3's of the prompt in its chat template, the hidden states behind these numbers of layers side by side.
    /// Pooled: nothing. Words are the prompt's tokens.
    Qwen3 {
        /// Ascending.
        layers: &'static [usize],
    },
}

/// How a sampler's noise levels are spaced before they are shifted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigmaSpacing {
    /// Evenly between the first and last of training's levels, shifted as these are, and then shifted again. The shift is
    /// one number.
    Trained,
    /// Evenly from 1 to one over the number of steps. The shift may depend on the size of the image.
    Even,
    /// Evenly, too. A shift that depends on the image's size depends on the number of steps as well (diffusers:
    /// `compute_empirical_mu`).
    EvenEmpirical,
}

impl PipelineNames {
    /// Whether a pipeline is of this family; one for another task, such as `StableDiffusion3Img2ImgPipeline`, may follow the
    /// name less `Pipeline`.
    pub fn is_class_of(&self, pipeline: &str) -> bool {
        let rest = pipeline.strip_prefix(self.class.trim_end_matches("Pipeline"));
        rest.is_some_and(|rest| rest.chars().next().is_none_or(|first| first.is_ascii_uppercase()))
    }

    /// Where a text encoder lies; none where the pipeline has no such.
    pub fn folders(&self, kind: TextEncoderKind) -> Option<&'static EncoderFolders> {
        self.encoders.iter().find(|folders| folders.kind == kind)
    }

    /// Whether these text encoders can be used, of those of the pipeline.
    ///
    /// # Errors
    /// One that it lacks, or one left out that it cannot do without; says which there must be.
    pub fn check_encoders(&self, kinds: &[TextEncoderKind]) -> Result<(), String> {
        let named = |kinds: &[TextEncoderKind]| {
            kinds.iter().map(|kind| format!("{:?}", kind.name())).collect::<Vec<_>>().join(", ")
        };
        let own: Vec<TextEncoderKind> = self.encoders.iter().map(|folders| folders.kind).collect();
        if let Some(kind) = kinds.iter().find(|kind| !own.contains(kind)) {
            return Err(format!("text encoder {:?}: this pipeline has {}", kind.name(), named(&own)));
        }
        if self.text != TextForm::ClipsThenT5 && own.iter().any(|kind| !kinds.contains(kind)) {
            let (kinds, own) = (named(kinds), named(&own));
            return Err(format!("text encoders {kinds}: this pipeline needs all of its own, {own}"));
        }
        Ok(())
    }
}
