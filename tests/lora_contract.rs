//! The contract of a LoRA: no effect while B is zero, frozen weights stay unchanged, exactly the configured layers are
//! adapted, merging it into the weights gives equal output, and every export draws an equal picture.
mod model_folder;
mod smoke_run;

use candle_core::{DType, Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use seg4diff::config::RunConfig;
use seg4diff::loss::SampleTargets;
use seg4diff::model::adapters::lora::{Lora, LoraSettings};
use seg4diff::model::adapters::{Adapter, Adapters, formats};
use seg4diff::model::families::sd3::MmDitConfig;
use seg4diff::model::families::{AdaptableLayer, Family, Transformer};
use seg4diff::model::text::TextEmbedding;
use seg4diff::model::weights::{Weights, read_all};
use seg4diff::train::checkpoint::Checkpoint;
use seg4diff::train::gradients::{StepInputs, StepPlan, gradients};
use seg4diff::train::optimizers::{Optimizer, adamw::AdamW};
use seg4diff::train::parameters::Parameters;
use seg4diff::train::trained::adapters_of;
use smoke_run::{Run, read, run, succeed};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

const VARIANTS: [&str; 3] = ["sd3", "sd3.5-medium", "sd3.5-large"];

fn fixture(variant: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/train_step").join(variant).join("transformer")
}

/// The model in a folder that holds `config.json` and its weights.
fn model(folder: &Path) -> Transformer {
    let config: MmDitConfig = serde_json::from_slice(&read(folder.join("config.json"))).expect("config");
    let weights = Weights::open_part(folder, "diffusion_pytorch_model", DType::F32, &Device::Cpu).expect("weights");
    config.transformer(None, &weights, DType::F32, &Device::Cpu).expect("model")
}

fn normal(random: &mut ChaCha8Rng, shape: &[usize]) -> Tensor {
    let values = StandardNormal.sample_iter(random).take(shape.iter().product()).collect::<Vec<f32>>();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("tensor")
}

/// Random inputs of a batch of two.
fn inputs(model: &Transformer) -> StepInputs {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let sizes = &model.config;
    let latents = [2, sizes.in_channels, 8, 8];
    StepInputs {
        latents: normal(&mut random, &latents),
        noise: normal(&mut random, &latents),
        sigma: Tensor::new(&[0.2f32, 0.9], &Device::Cpu).expect("tensor"),
        timestep: Tensor::new(&[200f32, 900.0], &Device::Cpu).expect("tensor"),
        text: TextEmbedding::new(
            normal(&mut random, &[2, 9, sizes.joint_attention_dim]),
            normal(&mut random, &[2, sizes.pooled_projection_dim]),
        )
        .expect("text"),
        targets: vec![
            SampleTargets { masks: vec![], spans: vec![], words: None },
            SampleTargets { masks: vec![], spans: vec![], words: None },
        ],
    }
}

fn output(model: &Transformer) -> Vec<f32> {
    let StepInputs { latents, timestep, text, .. } = inputs(model);
    let velocity = model.forward(&latents, &timestep, &text, None, None).expect("forward");
    velocity.flatten_all().and_then(|flat| flat.to_vec1()).expect("values")
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// An adapter of rank 3 on every layer that can have one; B is random, or zero.
fn everywhere(model: &mut Transformer, b_is_zero: bool) -> Adapters {
    let mut random = ChaCha8Rng::seed_from_u64(4);
    let lora = |AdaptableLayer { name, projection, .. }: AdaptableLayer| -> (String, Box<dyn Adapter>) {
        let (inner, outer) = projection.sizes();
        let down = (normal(&mut random, &[3, inner]) * 0.2).expect("tensor");
        let up = (normal(&mut random, &[outer, 3]) * if b_is_zero { 0.0 } else { 0.2 }).expect("tensor");
        (name, Box::new(Lora { down, up, alpha: 5.0 }))
    };
    model.adaptable().into_iter().map(lora).collect()
}

#[test]
fn an_adapter_whose_b_is_zero_changes_no_bit() {
    for variant in VARIANTS {
        let mut model = model(&fixture(variant));
        let without = output(&model);
        let zero = everywhere(&mut model, true);
        model.attach(&zero).expect("attach");
        assert_eq!(bits(&output(&model)), bits(&without), "{variant}");
        let random = everywhere(&mut model, false);
        model.attach(&random).expect("attach");
        let with = output(&model);
        let moved = with.iter().zip(&without).filter(|(a, b)| (*a - *b).abs() > 1e-3).count();
        assert!(moved * 2 > with.len(), "{variant}: the adapter does nothing");
    }
}

#[test]
fn merged_into_the_weights_it_gives_the_same_output() {
    for variant in VARIANTS {
        let mut adapted = model(&fixture(variant));
        let adapter = everywhere(&mut adapted, false);
        adapted.attach(&adapter).expect("attach");
        let folder = tempfile::tempdir().expect("folder");
        model_folder::copy(&fixture(variant), folder.path());
        let file = folder.path().join("diffusion_pytorch_model.safetensors");
        model_folder::edit_tensors(&file, |tensors| {
            for (module, lora) in &adapter {
                let weight = tensors.get_mut(&format!("{module}.weight")).expect("weight");
                *weight = (&*weight + lora.delta().expect("delta")).expect("sum");
            }
        });
        let (adapted, merged) = (output(&adapted), output(&model(folder.path())));
        let largest = merged.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let worst = adapted.iter().zip(&merged).fold(0f32, |worst, (a, b)| worst.max((a - b).abs())) / largest;
        println!("{variant}: {worst:e}");
        assert!(worst < 1e-5, "{variant}: relative difference {worst:e}");
    }
}

/// Steps with a large learning rate on every layer: the adapters change, the frozen weights do not.
#[test]
fn training_moves_the_adapters_alone() {
    for variant in VARIANTS {
        let file = fixture(variant).join("diffusion_pytorch_model.safetensors");
        let before = read(&file);
        let mut model = model(&fixture(variant));
        let without = output(&model);
        let blocks = model.blocks.len();
        let targets: BTreeSet<String> = model.adaptable().into_iter().map(|layer| layer.within.to_string()).collect();
        let mut config = RunConfig::parse(
            "",
            Path::new("test"),
            &[
                "output=\"o\"".to_string(),
                "model.path=\"m\"".to_string(),
                "data.source=[\"d\"]".to_string(),
                format!("lora.targets={targets:?}").replace('{', "[").replace('}', "]"),
                "lora.rank=2".to_string(),
            ],
        )
        .expect("config");
        (config.loss.focal_weight, config.loss.dice_weight) = (0.0, 0.0);
        let parameters = Parameters::new(&config, &mut model, &Device::Cpu).expect("parameters");
        let layers = model.adaptable().len();
        assert_eq!(parameters.all.len(), 2 * (layers - 1), "{variant}: A and B of every layer but one, see below");
        model.attach_trained(&parameters.trained().expect("adapters")).expect("attach");
        let start = parameters.tensors().expect("tensors");
        let mut optimizer = AdamW::new(&config.optim, &parameters).expect("optimizer");
        let inputs = inputs(&model);
        for _ in 0..3 {
            let plan = StepPlan { expert_layers: &[1], recomputed_blocks: 1 };
            let found = gradients(&model, &parameters, &config.loss, &inputs, plan).expect("gradients");
            optimizer.step(&parameters, &found.buffer, &|group| group.learning_rate(0.1, &config.optim)).expect("step");
        }
        let still: Vec<String> = parameters
            .tensors()
            .expect("tensors")
            .iter()
            .filter(|(name, tensor)| values(tensor) == values(&start[*name]))
            .map(|(name, _)| name.clone())
            .collect();
        assert!(still.is_empty(), "{variant}: trained without effect: {still:?}");
        // The last block has no text output, so its text queries are unused: they get no adapter.
        let last = format!("lora.transformer_blocks.{}.attn.add_q_proj", blocks - 1);
        assert!(start.keys().all(|name| !name.starts_with(&last)), "{variant}");
        assert!(output(&model).iter().zip(&without).any(|(a, b)| (a - b).abs() > 1e-2), "{variant}");
        let zero = everywhere(&mut model, true);
        model.attach(&zero).expect("attach");
        assert_eq!(bits(&output(&model)), bits(&without), "{variant}: a frozen weight moved");
        assert!(read(&file) == before, "{variant}: the model's file changed");
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("values")
}

/// A few steps with a large learning rate, so that the picture changes.
const QUICK: &[&str] = &[
    "train.steps=6",
    "train.batch=2",
    "data.resolution=64",
    "optim.lr=0.02",
    "optim.warmup_steps=0",
    "lora.rank=4",
    "lora.alpha=6",
];

#[test]
fn it_sits_on_the_configured_targets_and_layers_alone() {
    let targets = "lora.targets=[\"attn.to_q\",\"attn.add_k_proj\",\"ff.net.2\",\"norm1.linear\"]";
    let run = Run::new(&[QUICK, &[targets, "lora.layers=[0,2]"]].concat());
    let said = run.finish(&[]);
    let mut expected = BTreeSet::new();
    for layer in [0, 2] {
        for module in ["attn.to_q", "attn.add_k_proj", "ff.net.2", "norm1.linear"] {
            expected.insert(format!("transformer_blocks.{layer}.{module}"));
            let row = said.lines().find(|line| line.trim_start().starts_with(&format!("LoRA {module} ")));
            assert!(row.is_some_and(|row| row.contains("2/3")), "{module} in {said}");
        }
    }
    let adapter = formats::read(&run.path("lora.safetensors")).expect("adapter");
    assert_eq!(adapter.into_keys().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn targets_that_match_nothing_are_an_error_that_says_what_there_is() {
    for (settings, parts) in [
        (
            &["lora.targets=[\"attn.to_q\",\"attn2.to_q\"]"][..],
            &["lora.targets", "\"attn2.to_q\"", "attn.add_q_proj, ", "norm1_context.linear"][..],
        ),
        // The last block has no text output.
        (
            &["lora.layers=[2]", "lora.targets=[\"attn.to_add_out\"]", "loss.focal_weight=0", "loss.dice_weight=0"],
            &["lora.targets", "\"attn.to_add_out\" matches no layer", "have attn.add_k_proj, "],
        ),
        // The mask loss alone trains nothing above the expert.
        (&["lora.layers=[2]", "loss.flow_weight=0"], &["lora.layers", "blocks 0 to 1"]),
    ] {
        let without = Run::new(&[QUICK, settings].concat());
        let (output, said) = run(&mut without.train(&[]));
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert_eq!(said.matches("error: ").count(), 1, "{said}");
        for part in parts {
            assert!(said.contains(part), "{part} in {said}");
        }
        assert!(!without.path("config.toml").exists());
    }
}

/// Every file below a folder, and its bytes.
fn snapshot(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            found.extend(snapshot(&path));
        } else {
            let content = read(&path);
            found.insert(path, content);
        }
    }
    found
}

fn seg4diff(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("RUST_LOG");
    command
}

/// The pixels that the smoke base model draws with an adapter.
fn picture(lora: Option<&Path>) -> Vec<i32> {
    let folder = tempfile::tempdir().expect("folder");
    let mut command = seg4diff(&["generate", "--model", "checkpoints/smoke-base", "--prompt", "a red circle"]);
    command.args(["--size", "64", "--steps", "4", "--guidance", "3", "--seed", "5", "--out"]).arg(folder.path());
    if let Some(lora) = lora {
        command.arg("--lora").arg(lora);
    }
    succeed(&mut command);
    let picture = image::open(folder.path().join("000000.png")).expect("a picture").into_rgb8();
    assert_eq!(picture.dimensions(), (64, 64));
    picture.into_raw().into_iter().map(i32::from).collect()
}

#[test]
fn every_export_has_the_trained_effect_and_draws_the_same_picture() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints/smoke-base");
    let before = snapshot(&base);
    let targets = "lora.targets=[\"attn.to_q\",\"attn.to_v\",\"attn.to_out.0\",\"attn.add_q_proj\",\"attn.add_v_proj\",\
                   \"ff.net.0.proj\",\"ff.net.2\",\"norm1.linear\",\"norm1_context.linear\"]";
    let run = Run::new(&[QUICK, &[targets]].concat());
    run.finish(&[]);
    let checkpoint = run.checkpoint(6, "");
    let trained = Checkpoint::read(&checkpoint).expect("checkpoint");
    let trained = adapters_of(&trained.adapter, &LoraSettings { rank: 4, alpha: 6.0 }, &checkpoint).expect("adapter");
    // Nine targets on three blocks, except the last one's text queries, which are unused.
    assert_eq!(trained.len(), 26);

    let mut files = vec![run.path("lora.safetensors")];
    for (format, out) in [("diffusers", "d.safetensors"), ("peft", "peft"), ("comfyui", "c.safetensors")] {
        let out = run.path(out);
        let output = seg4diff(&["export", "--format", format, "--checkpoint"])
            .arg(&checkpoint)
            .arg("--out")
            .arg(&out)
            .output()
            .expect("export");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{format}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains(&out.display().to_string()), "{format}: {said}");
        files.push(out);
    }
    assert!(read(&files[0]) == read(&files[1]), "a finished run leaves what export writes for diffusers");
    assert!(files[2].join("adapter_config.json").is_file());
    let keys = |file: &Path| read_all(file).expect("tensors").into_keys().next().expect("a key");
    assert!(keys(&files[1]).starts_with("transformer.transformer_blocks."));
    assert!(keys(&files[2].join("adapter_model.safetensors")).starts_with("base_model.model.transformer_blocks."));
    assert!(keys(&files[3]).starts_with("lora_unet_joint_blocks_"));

    for file in &files {
        let read = formats::read(file).expect("adapter");
        for (module, lora) in &trained {
            let expected = values(&lora.delta().expect("delta"));
            let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            let found = values(&read[module].delta().expect("delta"));
            let worst = found.iter().zip(&expected).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
            assert!(
                largest > 0.0 && worst <= 1e-5 * largest,
                "{module}: {worst:e} of {largest:e} in {}",
                file.display()
            );
        }
    }

    let pictures: Vec<Vec<i32>> = files.iter().map(|file| picture(Some(file))).collect();
    let without = picture(None);
    let mean =
        |a: &[i32], b: &[i32]| f64::from(a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<i32>()) / a.len() as f64;
    println!("the adapter changes the picture by {:.2} of 255", mean(&pictures[0], &without));
    assert!(mean(&pictures[0], &without) > 2.0, "the adapter changes nothing");
    for (picture, file) in pictures.iter().zip(&files) {
        let worst = picture.iter().zip(&pictures[0]).map(|(a, b)| (a - b).abs()).max();
        // The order of sums differs between formats, so a value may round differently.
        assert!(worst <= Some(1), "{}: {worst:?} of 255", file.display());
        assert!(mean(picture, &pictures[0]) < 0.01, "{}", file.display());
    }
    assert!(snapshot(&base) == before, "the base model's files changed");
}
