//! An optimizer is a seam: two that are not in the program train whole runs, stop and resume, through its own loop.
//! One of them is AdamW in candle's operations, parameter by parameter, which the program's must equal to the bit.
use candle_core::{Device, Tensor};
use seg4diff::Result;
use seg4diff::autograd::backward;
use seg4diff::config::{OptimConfig, RunConfig};
use seg4diff::model::weights::read_all;
use seg4diff::train::checkpoint::list;
use seg4diff::train::gradient_buffer::GradientBuffer;
use seg4diff::train::optimizers::{Optimizer, adamw::AdamW};
use seg4diff::train::parameters::{Group, Parameters};
use seg4diff::train::run_folder::{Resume, RunFolder};
use seg4diff::train::{self, Components};
use std::collections::BTreeMap;
use std::path::Path;

type Tensors = BTreeMap<String, Tensor>;

fn values(tensors: &Tensors) -> BTreeMap<String, Vec<f32>> {
    let values = |tensor: &Tensor| tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("values");
    tensors.iter().map(|(name, tensor)| (name.clone(), values(tensor))).collect()
}

fn config(output: &Path, settings: &[&str]) -> RunConfig {
    let mut all = vec![format!("output={}", output.display())];
    all.extend(["train.steps=4", "train.batch=2", "data.resolution=64", "checkpoint.every=2"].map(String::from));
    all.extend(settings.iter().map(|setting| setting.to_string()));
    RunConfig::load(Path::new("configs/smoke.toml"), &all).expect("config")
}

fn train(config: &RunConfig, resume: &Resume, components: &Components) {
    let folder = RunFolder::open(&config.output, resume).expect("folder");
    train::run(config, &Device::Cpu, &folder, &[], components).expect("run");
}

/// What a run's newest checkpoint has of its adapter and its optimizer.
fn trained(output: &Path) -> [BTreeMap<String, Vec<f32>>; 2] {
    let (_, folder) = list(output).expect("list").pop().expect("a checkpoint");
    ["adapter", "optimizer"]
        .map(|file| values(&read_all(&folder.join(format!("{file}.safetensors"))).expect("tensors")))
}

/// Stochastic gradient descent with momentum (torch's `SGD`).
struct Sgd {
    momentum_buffer: Tensor,
}

impl Sgd {
    const MOMENTUM: f64 = 0.9;

    fn boxed(_: &OptimConfig, parameters: &Parameters) -> Result<Box<dyn Optimizer>> {
        Ok(Box::new(Self { momentum_buffer: parameters.buffer().zeros_like()? }))
    }
}

impl Optimizer for Sgd {
    fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &GradientBuffer,
        learning_rate: &dyn Fn(Group) -> f64,
    ) -> Result<()> {
        self.momentum_buffer = ((&self.momentum_buffer * Self::MOMENTUM)? + &gradients.values)?;
        for parameter in &parameters.all {
            let update = (parameter.view(&self.momentum_buffer)? * learning_rate(parameter.group))?;
            parameter.set(&(&parameter.values - update)?)?;
        }
        Ok(())
    }

    fn state_dict(&self, parameters: &Parameters) -> Result<Tensors> {
        let state = |p: &seg4diff::train::parameters::Parameter| {
            Ok((format!("{}.momentum_buffer", p.name), p.view(&self.momentum_buffer)?.force_contiguous()?))
        };
        parameters.all.iter().map(state).collect()
    }

    fn load_state_dict(&mut self, parameters: &Parameters, state: &Tensors) -> Result<()> {
        for parameter in &parameters.all {
            let saved = &state[&format!("{}.momentum_buffer", parameter.name)];
            parameter.view(&self.momentum_buffer)?.slice_set(saved, 0, 0)?;
        }
        Ok(())
    }
}

#[test]
fn another_optimizer_trains_and_resumes() {
    let folder = tempfile::tempdir().expect("folder");
    let components = Components {
        optimizer: Sgd::boxed,
        schedule: |config, step, _| config.lr / (step + 1) as f64,
        ..Components::default()
    };
    let whole = config(&folder.path().join("whole"), &[]);
    train(&whole, &Resume::No, &components);
    let [adapter, optimizer] = trained(&whole.output);
    assert!(optimizer.keys().all(|name| name.ends_with(".momentum_buffer")), "{:?}", optimizer.keys());

    // From the middle again: the newer checkpoint is set aside, and the same comes out.
    let middle = whole.output.join("checkpoints/step-000002");
    train(&whole, &Resume::From(middle), &components);
    assert_eq!(trained(&whole.output), [adapter.clone(), optimizer]);

    let adamw = config(&folder.path().join("adamw"), &[]);
    train(&adamw, &Resume::No, &Components::default());
    assert_ne!(trained(&adamw.output)[0], adapter);
    let rates = |output: &Path| -> Vec<f64> {
        let text = std::fs::read_to_string(output.join("metrics.jsonl")).expect("metrics");
        let rate = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["lr"].as_f64();
        text.lines().filter_map(rate).collect()
    };
    assert_eq!(rates(&whole.output), [1e-3, 1e-3 / 2.0, 1e-3 / 3.0, 1e-3 / 4.0]);
}

/// AdamW in candle's operations.
struct ReferenceAdamW {
    config: OptimConfig,
    /// `exp_avg`, `exp_avg_sq` and steps.
    moments: Vec<Option<(Tensor, Tensor, i32)>>,
}

impl ReferenceAdamW {
    fn new(config: &OptimConfig, parameters: &Parameters) -> Self {
        Self { config: config.clone(), moments: vec![None; parameters.all.len()] }
    }

    fn boxed(config: &OptimConfig, parameters: &Parameters) -> Result<Box<dyn Optimizer>> {
        Ok(Box::new(Self::new(config, parameters)))
    }
}

impl Optimizer for ReferenceAdamW {
    fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &GradientBuffer,
        learning_rate: &dyn Fn(Group) -> f64,
    ) -> Result<()> {
        let OptimConfig { betas: [beta1, beta2], eps, weight_decay, .. } = self.config;
        for ((parameter, moments), present) in parameters.all.iter().zip(&mut self.moments).zip(&gradients.present) {
            if !present {
                continue;
            }
            let lr = learning_rate(parameter.group);
            let gradient = parameter.view(&gradients.values)?;
            let (first, second) = ((&gradient * (1.0 - beta1))?, (gradient.sqr()? * (1.0 - beta2))?);
            let (first, second, steps) = match moments.take() {
                None => (first, second, 1),
                Some((m, v, steps)) => (((m * beta1)? + first)?, ((v * beta2)? + second)?, steps + 1),
            };
            let [correction1, correction2] = [beta1, beta2].map(|beta| 1.0 - beta.powf(f64::from(steps)));
            let denominator = ((second.sqrt()? / correction2.sqrt())? + eps)?;
            let update = ((&first / denominator)? * (lr / correction1))?;
            let decayed = (&parameter.values * (1.0 - lr * weight_decay))?;
            parameter.set(&(decayed - update)?)?;
            *moments = Some((first, second, steps));
        }
        Ok(())
    }

    fn state_dict(&self, parameters: &Parameters) -> Result<Tensors> {
        let mut state = Tensors::new();
        for (parameter, moments) in parameters.all.iter().zip(&self.moments) {
            let Some((first, second, steps)) = moments else { continue };
            state.insert(format!("{}.first", parameter.name), first.clone());
            state.insert(format!("{}.second", parameter.name), second.clone());
            state.insert(format!("{}.steps", parameter.name), Tensor::new(&[*steps as f32], &Device::Cpu)?);
        }
        Ok(state)
    }

    fn load_state_dict(&mut self, _: &Parameters, _: &Tensors) -> Result<()> {
        unimplemented!("no test resumes it")
    }
}

#[test]
fn adamw_has_the_bits_of_its_reference() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = ["optim.weight_decay=0.1", "train.accumulate=2"];
    let ours = config(&folder.path().join("ours"), &settings);
    train(&ours, &Resume::No, &Components::default());
    let reference = config(&folder.path().join("reference"), &settings);
    train(&reference, &Resume::No, &Components { optimizer: ReferenceAdamW::boxed, ..Components::default() });
    assert!(trained(&ours.output) == trained(&reference.output));
}

/// Gradients of some parameters in every step, of others in some, of others never; each range of the flat buffer then
/// has a number of steps of its own.
#[test]
fn parameters_without_gradient_stay_as_they_are() {
    let folder = tempfile::tempdir().expect("folder");
    let config = config(folder.path(), &["optim.weight_decay=0.1"]);
    let files = seg4diff::model::weights::files::ModelFiles::open(&config.model.path).expect("model");
    let dtype = candle_core::DType::F32;
    let fresh = || {
        let family = seg4diff::model::families::of(&files).expect("family");
        let mut model = family.load(&files, None, dtype, &Device::Cpu).expect("model");
        Parameters::new(&config, &mut model, &Device::Cpu).expect("parameters")
    };
    let (ours, theirs) = (fresh(), fresh());
    let before = values(&ours.tensors().expect("tensors"));
    let mut optimizer = AdamW::new(&config.optim, &ours).expect("optimizer");
    let mut reference = ReferenceAdamW::new(&config.optim, &theirs);
    let rate = |group: Group| group.learning_rate(1e-2, &config.optim);
    for step in 0..6 {
        let gradient = |(place, parameter): (usize, &seg4diff::train::parameters::Parameter)| {
            let is_present = place % 7 != 3 && (place % 5 != 2 || step % 3 == 1);
            let count = parameter.range.len();
            let values: Vec<f32> = (0..count).map(|i| ((i * 37 + place * 11 + step * 5) % 101) as f32 - 50.0).collect();
            is_present.then(|| Tensor::from_vec(values, parameter.values.shape(), &Device::Cpu).expect("tensor"))
        };
        let gradients: Vec<Option<Tensor>> = ours.all.iter().enumerate().map(gradient).collect();
        for (optimizer, parameters) in [(&mut optimizer as &mut dyn Optimizer, &ours), (&mut reference, &theirs)] {
            let leaves = parameters.all.iter().map(|parameter| parameter.leaf.clone()).zip(&gradients);
            let roots = leaves.filter_map(|(leaf, gradient)| Some((leaf, gradient.as_ref()?.copy().expect("copy"))));
            let mut gradients = GradientBuffer::of(parameters, || backward(roots)).expect("gradients");
            let norm = gradients.norm(parameters).expect("norm");
            gradients.clip(norm, 1.0).expect("clip");
            optimizer.step(parameters, &gradients, &rate).expect("step");
        }
    }
    let after = values(&ours.tensors().expect("tensors"));
    assert!(after == values(&theirs.tensors().expect("tensors")));
    let (state, wanted) = (optimizer.state_dict(&ours).expect("state"), reference.state_dict(&theirs).expect("state"));
    assert!(values(&state) == values(&wanted));
    for (place, parameter) in ours.all.iter().enumerate() {
        let name = &parameter.name;
        assert_eq!(before[name] == after[name], place % 7 == 3, "{name}");
        assert_eq!(state.contains_key(&format!("{name}.first")), place % 7 != 3, "{name}");
    }
}
