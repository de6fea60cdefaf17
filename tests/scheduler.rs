//! Noise levels, the sampling loop and pictures equal those of diffusers and Pillow.
#[path = "fixtures/pipeline/mod.rs"]
mod pipeline;

use candle_core::{Device, Tensor};
use pipeline::Expected;
use seg4diff::model::families::{Blur, SigmaSpacing};
use seg4diff::model::text::TextEmbedding;
use seg4diff::sample::generate::{PerturbedGuidance, PromptEmbeddings, SamplingOptions, initial_latents, read_latents};
use seg4diff::sample::image;
use seg4diff::sample::noise;
use seg4diff::sample::scheduler::Scheduler;

#[test]
fn noise_levels_are_those_of_diffusers_to_the_bit() {
    let expected = Expected::load();
    let schedules: Vec<(usize, f64)> = pipeline::json("schedules");
    let steps: Vec<usize> = pipeline::json("steps");
    assert!(schedules.len() >= 4 && steps.len() >= 6);
    for (train, shift) in schedules {
        let scheduler = Scheduler::new(train, shift);
        let key = format!("{train}_{shift:?}");
        assert_eq!(scheduler.sigmas, expected.values(&format!("sigmas_{key}")), "training, {key}");
        for n in &steps {
            let schedule = scheduler.set_timesteps(*n, 1);
            assert_eq!(schedule.sigmas, expected.values(&format!("sigmas_{key}_{n}")), "{n} steps, {key}");
            assert_eq!(schedule.timesteps, expected.values(&format!("timesteps_{key}_{n}")), "{n} steps, {key}");
        }
    }
}

#[test]
fn scheduler_settings_come_from_its_config() {
    let folder = pipeline::copy();
    let file = folder.path().join("scheduler/scheduler_config.json");
    assert_eq!(Scheduler::from_config(&file, SigmaSpacing::Trained).unwrap(), Scheduler::new(1000, 3.0));
    let cases = [
        (r#"{"shift": 3.0, "use_dynamic_shifting": true}"#, "use_dynamic_shifting"),
        (r#"{"shift": 3.0, "use_karras_sigmas": true}"#, "use_karras_sigmas"),
        (r#"{"shift": -1.0}"#, "shift"),
        (r#"{"shift": "three"}"#, "line 1 column 17"),
        (r#"{"shift": 3.0, "num_train_timesteps": 0}"#, "num_train_timesteps"),
        (r#"{"shift": 3.0, "_class_name": "EulerDiscreteScheduler"}"#, "EulerDiscreteScheduler"),
    ];
    for (text, named) in cases {
        std::fs::write(&file, text).unwrap();
        let message = Scheduler::from_config(&file, SigmaSpacing::Trained).unwrap_err().to_string();
        assert!(message.contains("scheduler_config.json") && message.contains(named), "{text}: {message}");
    }
}

/// Those of FLUX.1, dev and schnell, whose pipeline gives its scheduler the levels; made by train_step/flux.py.
#[test]
fn evenly_spaced_levels_are_those_of_diffusers_to_the_bit() {
    check_levels("flux_schedules.json", SigmaSpacing::Even, 60);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("scheduler_config.json");
    let refused = [
        (r#"{"use_dynamic_shifting": true, "time_shift_type": "linear"}"#, "time_shift_type"),
        (r#"{"use_dynamic_shifting": true, "base_shift": 1e9}"#, "base_shift"),
        (r#"{"use_dynamic_shifting": true, "base_image_seq_len": 4096}"#, "base_image_seq_len"),
    ];
    for (text, named) in refused {
        std::fs::write(&file, text).unwrap();
        let message = Scheduler::from_config(&file, SigmaSpacing::Even).unwrap_err().to_string();
        assert!(message.contains("scheduler_config.json") && message.contains(named), "{text}: {message}");
    }
}

/// Those of FLUX.2-klein, whose shift depends on the number of steps as well; made by train_step/flux2.py.
#[test]
fn levels_of_an_empirical_shift_are_those_of_diffusers_to_the_bit() {
    check_levels("flux2_schedules.json", SigmaSpacing::EvenEmpirical, 48);
}

fn check_levels(fixture: &str, spacing: SigmaSpacing, least: usize) {
    let text = std::fs::read_to_string(format!("tests/fixtures/train_step/{fixture}")).unwrap();
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("scheduler_config.json");
    let numbers = |value: &serde_json::Value| -> Vec<f32> {
        value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
    };
    let schedules = all["schedules"].as_array().unwrap();
    assert!(schedules.len() >= least);
    for wanted in schedules {
        let name = wanted["scheduler"].as_str().unwrap();
        std::fs::write(&file, all["configs"][name].to_string()).unwrap();
        let scheduler = Scheduler::from_config(&file, spacing).unwrap();
        let train = &scheduler.sigmas;
        assert_eq!(vec![train[0], train[499], train[999]], numbers(&wanted["train_checks"]), "{name}");
        let (steps, tokens) = (wanted["steps"].as_u64().unwrap() as usize, wanted["tokens"].as_u64().unwrap() as usize);
        let schedule = scheduler.set_timesteps(steps, tokens);
        assert_eq!(schedule.sigmas, numbers(&wanted["sigmas"]), "{name}, {steps} steps, {tokens} tokens");
        assert_eq!(schedule.timesteps, numbers(&wanted["timesteps"]), "{name}, {steps} steps, {tokens} tokens");
    }
}

/// The stand-in for the transformer in the fixture.
fn stand_in(x: &Tensor, timestep: &Tensor, text: &TextEmbedding, _: Option<Blur>) -> seg4diff::Result<Tensor> {
    let batch = x.dim(0)?;
    let wave = (timestep / 300.0)?.sin()?.reshape((batch, 1, 1, 1))?;
    let level = text.context.mean((1, 2))?.reshape((batch, 1, 1, 1))?;
    Ok((x * 0.3)?.broadcast_add(&wave)?.broadcast_add(&x.sqr()?.broadcast_mul(&level)?)?)
}

#[test]
fn sampling_follows_diffusers_with_and_without_guidance() {
    let expected = Expected::load();
    let part = |tensor: &Tensor, from| tensor.narrow(0, from, 2).unwrap();
    let text =
        |from| TextEmbedding::new(part(expected.get("context"), from), part(expected.get("pooled"), from)).unwrap();
    let (positive, negative) = (text(0), text(2));
    for (name, guidance, batch) in [("sampled_guided", 5.5, 4), ("sampled_plain", 1.0, 2)] {
        let options = SamplingOptions { steps: 9, guidance, perturbed: None, progress: false };
        let conditions = PromptEmbeddings { positive: &positive, negative: &negative };
        let mut calls = 0;
        let found = options
            .run(&Scheduler::new(1000, 3.0), expected.get("noise"), 1, &conditions, |x, timestep, text, _| {
                calls += 1;
                assert_eq!((x.dim(0)?, timestep.dims1()?, text.context.dim(0)?), (batch, batch, batch));
                stand_in(x, timestep, text, None)
            })
            .unwrap();
        assert_eq!(calls, 9);
        expected.assert_close(name, &found, 1e-5);
    }
}

/// One step from σ = 1 to 0: latents minus the velocity, whose parts are recognisable.
#[test]
fn perturbed_guidance_leads_away_from_the_blurred_model() {
    let cpu = Device::Cpu;
    let text = |level: f32| {
        let (context, pooled) = (Tensor::full(level, (1, 1, 1), &cpu), Tensor::full(level, (1, 1), &cpu));
        TextEmbedding::new(context.unwrap(), pooled.unwrap()).unwrap()
    };
    let (positive, negative) = (text(5.0), text(2.0));
    let blur = Blur { layer: 3, sigma: 2.5 };
    for (guidance, expected) in [(1.0, 5.0 + 0.5 * (5.0 - 1.0)), (4.0, 2.0 + 4.0 * 3.0 + 0.5 * (5.0 - 1.0))] {
        let perturbed = Some(PerturbedGuidance { scale: 0.5, blur });
        let options = SamplingOptions { steps: 1, guidance, perturbed, progress: false };
        let conditions = PromptEmbeddings { positive: &positive, negative: &negative };
        let noise = Tensor::zeros((1, 1, 1, 1), candle_core::DType::F32, &cpu).unwrap();
        let found = options
            .run(&Scheduler::new(1000, 3.0), &noise, 1, &conditions, |x, timestep, text, blurred| {
                assert_eq!((x.dim(0)?, timestep.dims1()?), (text.context.dim(0)?, text.context.dim(0)?));
                match blurred {
                    None => Ok(text.context.reshape(((), 1, 1, 1))?),
                    Some(found) => {
                        assert_eq!((found, text.context.flatten_all()?.to_vec1::<f32>()?), (blur, vec![5.0]));
                        Ok(Tensor::ones((1, 1, 1, 1), candle_core::DType::F32, &cpu)?)
                    }
                }
            })
            .unwrap();
        assert_eq!(pipeline::values(&found), [-expected]);
    }
}

#[test]
fn no_steps_are_a_usage_error() {
    let expected = Expected::load();
    let text = TextEmbedding::new(expected.get("context").clone(), expected.get("pooled").clone()).unwrap();
    let options = SamplingOptions { steps: 0, guidance: 1.0, perturbed: None, progress: false };
    let conditions = PromptEmbeddings { positive: &text, negative: &text };
    let result = options.run(&Scheduler::new(1000, 3.0), expected.get("noise"), 1, &conditions, stand_in);
    assert!(matches!(result, Err(seg4diff::Error::Usage(_))));
}

#[test]
fn noise_depends_on_its_key_alone() {
    let cpu = Device::Cpu;
    let draw = |seed, stream: &[u64]| pipeline::values(&noise::normal(seed, stream, (40, 50), &cpu).unwrap());
    let first = draw(1, &[2, 3]);
    assert_eq!(first, draw(1, &[2, 3]));
    for (seed, stream) in [(2, vec![2, 3]), (1, vec![3, 2]), (1, vec![2]), (1, vec![2, 3, 0])] {
        assert_ne!(first, draw(seed, &stream), "seed {seed}, {stream:?}");
    }
    let mean = first.iter().sum::<f32>() / 2000.0;
    let variance = first.iter().map(|v| v * v).sum::<f32>() / 2000.0;
    assert!(mean.abs() < 0.1 && (variance - 1.0).abs() < 0.15, "mean {mean}, variance {variance}");
    // Recorded values: a change of the generator would silently change every image of every seed.
    let start: Vec<f32> = first[..3].to_vec();
    assert_eq!(start, PINNED_NOISE);

    let shape = (4, 3, 2);
    let all = initial_latents(7, 0, 5, shape, &cpu).unwrap();
    let later = initial_latents(7, 3, 2, shape, &cpu).unwrap();
    assert_eq!(pipeline::values(&all.narrow(0, 3, 2).unwrap()), pipeline::values(&later));
}

const PINNED_NOISE: [f32; 3] = [0.10116071, -1.1828436, 0.18141454];

#[test]
fn given_latents_must_fit() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("latents.safetensors");
    let latents = noise::normal(1, &[], (2, 16, 4, 6), &Device::Cpu).unwrap();
    let tensors = [("latents".to_string(), latents.clone())].into();
    seg4diff::model::weights::write(&file, &tensors, &Default::default()).unwrap();
    let read = |key, images, shape| read_latents(&file, key, images, shape, &Device::Cpu);
    assert_eq!(pipeline::values(&read("latents", Some(2), (16, 4, 6)).unwrap()), pipeline::values(&latents));
    assert!(read("latents", None, (16, 4, 6)).is_ok());
    let message = |result: seg4diff::Result<Tensor>| result.unwrap_err().to_string();
    assert!(message(read("noise", Some(2), (16, 4, 6))).contains("no tensor \"noise\", it holds latents"));
    assert!(message(read("latents", Some(3), (16, 4, 6))).contains("expected [3, 16, 4, 6]"));
    assert!(message(read("latents", None, (16, 6, 4))).contains("[2, 16, 4, 6], expected [images, 16, 6, 4]"));
}

#[test]
fn pictures_are_rounded_as_diffusers_rounds_them() {
    let expected = Expected::load();
    let picture = image::to_rgb8(expected.get("to_rgb8")).unwrap().remove(0);
    let hex: String = picture.as_raw().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, pipeline::json::<String>("rgb8"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("picture.png");
    image::write_png(&file, &picture).unwrap();
    assert_eq!(image::read_rgb8(&file).unwrap(), picture);
}

#[test]
fn pictures_are_resized_as_pillow_resizes_them() {
    let expected = Expected::load();
    for size in [32, 64, 128] {
        let found = image::read_square(&pipeline::folder().join("picture.png"), size, &Device::Cpu).unwrap();
        let found = pipeline::values(&found);
        let wanted = expected.values(&format!("resized_{size}"));
        assert_eq!(found.len(), wanted.len());
        // To the 8-bit value.
        let off = found.iter().zip(&wanted).filter(|(f, w)| (*f - *w).abs() > 1e-6).count();
        assert_eq!(off, 0, "{off} of {} values differ at {size}", found.len());
    }
}
