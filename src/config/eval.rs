//! The section `[eval]`: what is measured before, during and after training.
use super::data::DataConfig;
use super::keys::{choices, keys};
use super::loss::{AttentionForm, LossConfig};
use super::model::ModelConfig;
use super::reader::Reader;
use super::rule::{follows, optional, required, usual};
use super::setting::{Check, Choice, at_least, check, distinct, if_given, not_empty, positive, within};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Standard deviation of the blur of perturbed guidance, in image tokens, where none is given.
pub const BLUR: f64 = 4.0;

keys! {
    /// What is measured of the model, on images that it is not trained on; without this section nothing is.
    /// `seg4diff evaluate generation --config` reads it, too.
    [eval] pub struct EvalConfig(reader, model: &ModelConfig, data: &DataConfig) {
        /// Folder of held-out images, which are segmented.
        images: PathBuf = required("\"data/coco/val2017\""), not_empty();
        /// Folder of the real images that drawn ones are compared with; without it, `images`.
        real: Option<PathBuf> = optional("\"data/coco/val2017\"");
        /// Folder of label maps of the same names as the images; with `classes`, the mIoU of the experts' attention is
        /// measured.
        labels: Option<PathBuf> = optional("\"data/coco/labels\"");
        /// Names of the labels: a JSON list, the index being the label, or an object from label to name.
        classes: Option<PathBuf> = optional("\"data/coco/classes.json\"");
        /// Captions, as `data.captions`: image i is drawn from caption i by key.
        captions: Option<PathBuf> = optional("\"data/coco/captions.json\"");
        /// Images that are segmented, the first by name; 0 for all.
        segmentation_images: usize = usual(0);
        /// Names in the prompt with which an image is segmented.
        protocol: SegmentationProtocol = usual(SegmentationProtocol::Present);
        /// Blocks whose attention segments, averaged.
        layers: Vec<usize> =
            follows("model.expert_layers", model.expert_layers.clone()).of_blocks(), distinct();
        /// Which heads' attention makes the maps.
        heads: MapHeads = usual(MapHeads::Mean);
        /// What a map's values are.
        attention: AttentionForm = usual(AttentionForm::Softmax);
        /// Which maps are scaled to [0, 1] over the image.
        normalize: MapNormalize = usual(MapNormalize::None);
        /// Side in pixels of the squares that are segmented and drawn.
        size: usize = follows("data.resolution", data.resolution), within(16, 8192);
        /// Real images that the flow loss is measured on, the first by name, which need captions; 0 for none.
        flow_images: usize = usual(0);
        /// Images that all blocks are analysed with for the report, as `seg4diff analyze` does; 0 for none.
        analysis_images: usize = usual(0);
        /// Weights of FID's Inception (`seg4diff evaluate fid --help`): FID and KID.
        inception: Option<PathBuf> = optional("\"models/inception.safetensors\"");
        /// Folder of the demo's classifier: FD-demo.
        features: Option<PathBuf> = optional("\"checkpoints/demo-features\"");
        /// Images that are drawn, before and after training; 0 for none. FID wants thousands.
        generation_images: usize = follows(
            "500 with eval.inception or eval.features, else 0",
            if inception.is_some() || features.is_some() { 500 } else { 0 },
        );
        /// Denoising steps.
        steps: usize = usual(28), within(1, 1000);
        /// Guidance scale; 1 or less turns guidance off. Without it 7, of FLUX.1 3.5, of FLUX.2 4; dev is told it and runs once, schnell
        /// has none.
        guidance: Option<f64> = optional("7.0"), if_given(at_least(0.0));
        /// Scale of perturbed guidance, away from what the model draws with one block's attention to the text blurred; 0
        /// turns it off.
        perturb_scale: f64 = usual(0.0), at_least(0.0);
        /// That block.
        perturb_layer: usize = follows("the last of model.expert_layers", model.last_expert());
        /// Standard deviation of the blur in image tokens.
        perturb_sigma: f64 = usual(BLUR), positive();
        /// Images that are segmented, drawn and analysed together; without it as many as make up a megapixel, at most 32.
        batch: Option<usize> = optional("1"), if_given(within(1, 4096));
        /// Seed of all noise of the evaluation; apart from the run's, so that runs of different seeds compare.
        seed: u64 = usual(0);
        /// Steps between small validations while training; 0 for none.
        every: u64 = usual(0);
        /// Images that each of them segments, and measures the flow loss on.
        every_images: usize = usual(32), at_least(1);
        /// Images that each of them draws; 0 for none.
        every_samples: usize = usual(4);
        /// Validations whose pictures are kept: the first, the last and others evenly between; 0 keeps all. Scores are
        /// kept of all.
        keep_pictures: u64 = usual(50), none_or_two();
        /// The score by which the best checkpoint is kept.
        best_by: BestBy = follows(
            "\"miou\" with eval.labels, else \"held_out_flow\"",
            if reader.given("eval.labels") { BestBy::Miou } else { BestBy::HeldOutFlow },
        );
        /// Whether the model as it is before training is measured, too.
        before: bool = usual(true);
        /// Whether the run is repeated on the flow loss alone and measured, too.
        compare_without_masks: bool = usual(false);
    }
}

/// A number of which the first and the last are part.
fn none_or_two() -> Check<u64> {
    check("0 or at least 2", |number: &u64| match number {
        1 => Err("expected 2 or more, for the first and the last, or 0 for all".into()),
        _ => Ok(()),
    })
}

impl EvalConfig {
    /// Folder of the real images that drawn ones are compared with.
    pub fn real_images(&self) -> &Path {
        self.real.as_deref().unwrap_or(&self.images)
    }

    /// What no key can say alone.
    pub(super) fn check(&self, loss: &LossConfig, reader: &mut Reader) {
        let (labels, classes) = (reader.given("eval.labels"), reader.given("eval.classes"));
        let captions = reader.given("eval.captions");
        if labels != classes {
            let (missing, given) =
                if labels { ("eval.classes", "eval.labels") } else { ("eval.labels", "eval.classes") };
            reader.problem(&[missing, given], format!("is missing; segmentation is measured with both it and {given}"));
        }
        let networks = reader.given("eval.inception") || reader.given("eval.features");
        match self.generation_images {
            0 => {}
            1 => reader
                .problem(&["eval.generation_images"], "of one image there is no covariance; expected 2 or more, or 0"),
            _ if !networks => reader.problem(
                &["eval.generation_images"],
                "needs a network to compare features: set eval.inception or eval.features",
            ),
            _ if !captions => reader.problem(
                &["eval.captions", "eval.generation_images", "eval.inception", "eval.features"],
                "is missing; images are drawn from captions (generation_images = 0 draws none)",
            ),
            _ => {}
        }
        if self.analysis_images > 0 && !labels {
            let problem = "is missing; blocks are compared by how they segment";
            reader.problem(&["eval.labels", "eval.analysis_images"], problem);
        }
        if !labels && !classes && self.generation_images == 0 && self.flow_images == 0 && self.every == 0 {
            reader.problem(
                &["eval.images"],
                "nothing would be measured: set eval.labels and eval.classes, or eval.captions with eval.inception or \
                 eval.features",
            );
        }
        let measured = match self.best_by {
            BestBy::Miou => ("eval.labels", labels),
            BestBy::HeldOutFlow => ("eval.captions", captions),
        };
        if let (1.., (missing, false)) = (self.every, measured) {
            reader.problem(&["eval.best_by", "eval.every"], format!("cannot be measured without {missing}"));
        }
        if self.flow_images > 0 && !captions {
            let problem = "is missing; the flow loss needs the images' captions";
            reader.problem(&["eval.captions", "eval.flow_images"], problem);
        }
        if self.compare_without_masks && !loss.uses_masks() {
            let problem = "the run has no mask loss itself: there is nothing to compare";
            reader.problem(&["eval.compare_without_masks"], problem);
        }
        if self.compare_without_masks && loss.flow_weight == 0.0 {
            let problem = "without the mask loss nothing would be trained: loss.flow_weight is 0";
            reader.problem(&["eval.compare_without_masks", "loss.flow_weight"], problem);
        }
    }
}

choices! {
    /// What an image is segmented by.
    pub enum SegmentationProtocol: Copy {
        /// The names of the classes in its ground truth, as in the paper.
        Present = "present",
        /// The names of all classes.
        All = "all",
    }
}

choices! {
    /// The score of a validation by which the best checkpoint is kept.
    pub enum BestBy: Copy {
        /// mIoU of the segmentation, the higher the better.
        Miou = "miou",
        /// Flow loss on held-out images, the lower the better.
        HeldOutFlow = "held_out_flow",
    }
}

choices! {
    /// Which of a block's heads a map is of.
    pub enum MapHeads: Copy {
        /// The mean over heads.
        Mean = "mean",
        /// The strongest head at each position.
        Max = "max",
    } or {
        /// This head alone.
        One(usize): "the number of a head (from 0)"
    }
}

impl MapHeads {
    /// The one head, where it is one.
    pub fn one(self) -> Option<usize> {
        if let Self::One(head) = self { Some(head) } else { None }
    }
}

impl FromStr for MapHeads {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let one = |_| text.parse().map(Self::One);
        Self::from_name(text).or_else(one).map_err(|_| "expected mean, max or the number of a head".into())
    }
}

choices! {
    /// Which maps are scaled to [0, 1] over the image: the least value subtracted, then divided by the greatest and 1e-6.
    pub enum MapNormalize: Copy {
        /// No map.
        None = "none",
        /// Each token's, before the mean over the tokens of a name.
        Before = "before",
        /// Each name's, after that mean.
        After = "after",
        /// Each token's and each name's.
        Both = "both",
    }
}

impl MapNormalize {
    /// Whether each token's map is scaled.
    pub fn before(self) -> bool {
        matches!(self, Self::Before | Self::Both)
    }

    /// Whether each name's map is scaled.
    pub fn after(self) -> bool {
        matches!(self, Self::After | Self::Both)
    }
}
