//! Training learns: on one fixed batch (images, noise and timesteps), the dice term falls by a third, the softmax
//! alignment by a quarter, and the flow loss with them.
use candle_core::{DType, Device};
use seg4diff::config::RunConfig;
use seg4diff::data::Loader;
use seg4diff::model::pipeline::{Pipeline, PipelineOptions};
use seg4diff::model::weights::files::ModelFiles;
use seg4diff::sample::scheduler::Scheduler;
use seg4diff::train::gradients::{LossTerms, StepPlan, gradients};
use seg4diff::train::inputs::InputMaker;
use seg4diff::train::optimizers::{Optimizer, adamw::AdamW};
use seg4diff::train::parameters::Parameters;
use seg4diff::train::schedule::warmup_cosine;
use std::path::{Path, PathBuf};

const STEPS: u64 = 150;

/// Trains on four images of data/smoke with fixed inputs; the first and the last loss terms.
fn train(settings: &[&str]) -> (LossTerms, LossTerms) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = root.join("configs/smoke.toml");
    let at = |path: &Path| root.join(path).to_string_lossy().into_owned();
    let mut all = vec!["optim.lr=1e-2".to_string(), "optim.lora_lr_scale=1.0".to_string()];
    all.extend(settings.iter().map(|s| s.to_string()));
    let mut config = RunConfig::load(&file, &all).unwrap();
    config.loss.mask_max_sigma = 1.0;
    config.model.path = at(&PathBuf::from(&config.model.path));
    config.data.source = config.data.source.iter().map(|s| at(Path::new(s))).collect();
    config.data.captions = config.data.captions.map(|c| root.join(c));

    let files = ModelFiles::open(&config.model.path).unwrap();
    let options = PipelineOptions {
        text_encoders: config.model.text_encoders.clone(),
        max_sequence_length: config.model.max_sequence_length,
        dtype: DType::F32,
        device: Device::Cpu,
        depth: None,
    };
    let mut pipeline = Pipeline::load(&files, &options).unwrap();
    let parameters = Parameters::new(&config, &mut pipeline.transformer, &Device::Cpu).unwrap();
    pipeline.transformer.attach_trained(&parameters.trained().unwrap()).unwrap();
    let scheduler = Scheduler::open(&files).unwrap();
    let batch = Loader::new(&config.data, config.seed, None, true).unwrap().next_batch(4).unwrap();
    let maker =
        InputMaker { pipeline: &pipeline, scheduler: &scheduler, config: &config, prompt: None, device: &Device::Cpu };
    let inputs = maker.make(&batch.samples, 0).unwrap();
    let plan = StepPlan { expert_layers: &config.model.expert_layers, recomputed_blocks: 0 };
    let mut optimizer = AdamW::new(&config.optim, &parameters).unwrap();
    let mut seen = vec![];
    for step in 0..STEPS {
        let result = gradients(&pipeline.transformer, &parameters, &config.loss, &inputs, plan).unwrap();
        let mut found = result.buffer.clone();
        found.clip(found.norm(&parameters).unwrap(), config.optim.clip_norm).unwrap();
        let lr = warmup_cosine(&config.optim, step, STEPS);
        optimizer.step(&parameters, &found, &|group| group.learning_rate(lr, &config.optim)).unwrap();
        seen.push(result.terms().unwrap());
    }
    (seen[0], seen[seen.len() - 1])
}

#[test]
fn the_published_loss_comes_down() {
    let (first, last) = train(&[]);
    let (dice, flow) = (last.dice.unwrap() / first.dice.unwrap(), last.flow.unwrap() / first.flow.unwrap());
    println!("dice {:?} to {:?}, flow {:?} to {:?}", first.dice, last.dice, first.flow, last.flow);
    assert!(dice < 2.0 / 3.0 && flow < 1.0, "dice × {dice}, flow × {flow}");
}

#[test]
fn the_softmax_form_comes_down() {
    let (first, last) = train(&["loss.alignment=\"softmax\""]);
    let (align, flow) = (last.align.unwrap() / first.align.unwrap(), last.flow.unwrap() / first.flow.unwrap());
    println!("align {:?} to {:?}, flow {:?} to {:?}", first.align, last.align, first.flow, last.flow);
    assert!(align < 0.75 && flow < 1.0, "align × {align}, flow × {flow}");
}
