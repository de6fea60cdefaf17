//! The section `[eval]`: what is measured before and after training.
use super::reader::Reader;
use super::setting::{Blocks, at_least, distinct, not_empty, positive, within};
use super::{AttentionForm, BestBy, EvalConfig, MapHeads, MapNormalize, RunConfig, SegmentationProtocol};

/// Standard deviation of the blur of perturbed guidance, in image tokens, where none is given.
pub const BLUR: f64 = 4.0;

/// The section, where there is one; `run` is the rest of the configuration.
pub(super) fn section(reader: &mut Reader, run: &RunConfig) -> Option<EvalConfig> {
    let present = reader.has_section("eval");
    // Asked for in any case, so that the keys are known.
    let inception = reader.optional("eval.inception");
    let features = reader.optional("eval.features");
    let images = match present {
        true => reader.required("eval.images", "\"data/coco/val2017\"", not_empty),
        false => reader.get("eval.images", Default::default()),
    };
    let can_compare = inception.is_some() || features.is_some();
    let usual_best = if reader.given("eval.labels") { BestBy::Miou } else { BestBy::HeldOutFlow };
    let eval = EvalConfig {
        images,
        real: reader.optional("eval.real"),
        labels: reader.optional("eval.labels"),
        classes: reader.optional("eval.classes"),
        captions: reader.optional("eval.captions"),
        segmentation_images: reader.get("eval.segmentation_images", 0),
        protocol: reader.get("eval.protocol", SegmentationProtocol::Present),
        layers: reader.get("eval.layers", Blocks(run.model.expert_layers.clone())).0,
        heads: reader.get("eval.heads", MapHeads::Mean),
        attention: reader.get("eval.attention", AttentionForm::Softmax),
        normalize: reader.get("eval.normalize", MapNormalize::None),
        size: reader.checked("eval.size", run.data.resolution, within(16, 8192)),
        flow_images: reader.get("eval.flow_images", 0),
        analysis_images: reader.get("eval.analysis_images", 0),
        generation_images: reader.get("eval.generation_images", if can_compare { 500 } else { 0 }),
        steps: reader.checked("eval.steps", 28, within(1, 1000)),
        guidance: reader.checked("eval.guidance", 7.0, at_least(0.0)),
        perturb_scale: reader.checked("eval.perturb_scale", 0.0, at_least(0.0)),
        perturb_layer: reader.get("eval.perturb_layer", run.model.last_expert()),
        perturb_sigma: reader.checked("eval.perturb_sigma", BLUR, positive),
        batch: reader.optional("eval.batch"),
        seed: reader.get("eval.seed", 0),
        inception,
        features,
        every: reader.get("eval.every", 0),
        every_images: reader.checked("eval.every_images", 32, at_least(1)),
        every_samples: reader.get("eval.every_samples", 4),
        keep_pictures: reader.checked("eval.keep_pictures", 50, none_or_two),
        best_by: reader.get("eval.best_by", usual_best),
        before: reader.get("eval.before", true),
        compare_without_masks: reader.get("eval.compare_without_masks", false),
    };
    if !present {
        return None;
    }
    // The experts, its default, are checked where they are given.
    if let (true, Err(problem)) = (reader.given("eval.layers"), distinct(&eval.layers)) {
        reader.problem(&["eval.layers"], problem);
    }
    if let Some(Err(problem)) = eval.batch.as_ref().map(within(1, 4096)) {
        reader.problem(&["eval.batch"], problem);
    }
    check_together(&eval, run, reader);
    Some(eval)
}

/// A number of which the first and the last are part.
fn none_or_two(number: &u64) -> std::result::Result<(), String> {
    if *number == 1 { Err("expected 2 or more, for the first and the last, or 0 for all".into()) } else { Ok(()) }
}

/// What no key can say alone.
fn check_together(eval: &EvalConfig, run: &RunConfig, reader: &mut Reader) {
    let (labels, classes) = (reader.given("eval.labels"), reader.given("eval.classes"));
    if labels != classes {
        let (missing, given) = if labels { ("eval.classes", "eval.labels") } else { ("eval.labels", "eval.classes") };
        reader.problem(&[missing, given], format!("is missing; segmentation is measured with both it and {given}"));
    }
    let networks = reader.given("eval.inception") || reader.given("eval.features");
    match eval.generation_images {
        0 => {}
        1 => {
            reader.problem(&["eval.generation_images"], "of one image there is no covariance; expected 2 or more, or 0")
        }
        _ if !networks => reader.problem(
            &["eval.generation_images"],
            "needs a network to compare features: set eval.inception or eval.features",
        ),
        _ if !reader.given("eval.captions") => reader.problem(
            &["eval.captions", "eval.generation_images", "eval.inception", "eval.features"],
            "is missing; images are drawn from captions (generation_images = 0 draws none)",
        ),
        _ => {}
    }
    if eval.analysis_images > 0 && !labels {
        reader.problem(&["eval.labels", "eval.analysis_images"], "is missing; blocks are compared by how they segment");
    }
    if !labels && !classes && eval.generation_images == 0 && eval.flow_images == 0 && eval.every == 0 {
        reader.problem(
            &["eval.images"],
            "nothing would be measured: set eval.labels and eval.classes, or eval.captions with eval.inception or \
             eval.features",
        );
    }
    let measured = match eval.best_by {
        BestBy::Miou => ("eval.labels", labels),
        BestBy::HeldOutFlow => ("eval.captions", reader.given("eval.captions")),
    };
    if let (1.., (missing, false)) = (eval.every, measured) {
        reader.problem(&["eval.best_by", "eval.every"], format!("cannot be measured without {missing}"));
    }
    if eval.flow_images > 0 && !reader.given("eval.captions") {
        reader.problem(&["eval.captions", "eval.flow_images"], "is missing; the flow loss needs the images' captions");
    }
    if eval.compare_without_masks && !run.loss.uses_masks() {
        reader.problem(&["eval.compare_without_masks"], "the run has no mask loss itself: there is nothing to compare");
    }
    if eval.compare_without_masks && run.loss.flow_weight == 0.0 {
        reader.problem(
            &["eval.compare_without_masks", "loss.flow_weight"],
            "without the mask loss nothing would be trained: loss.flow_weight is 0",
        );
    }
}
