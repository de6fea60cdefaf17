//! Adapters that other tools saved mean here what they mean there.
use candle_core::{Device, Tensor};
use seg4diff::model::adapters::formats::read;
use seg4diff::model::adapters::weighted::{WeightedFile, read_all};
use seg4diff::model::adapters::{Adapter, Adapters};
use seg4diff::model::weights;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/adapters").join(name)
}

#[track_caller]
fn assert_close(found: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    let difference = norm(&(found - expected).unwrap());
    assert!(difference <= 1e-5 * norm(expected), "{what}: differs by {difference}, norm {}", norm(expected));
}

/// The dense changes of one file's modules.
fn assert_changes(found: &Adapters, expected: &BTreeMap<String, Tensor>, what: &str) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    for (module, dense) in expected {
        assert_close(&found[module].delta().unwrap(), dense, &format!("{what} {module}"));
    }
}

#[test]
fn every_tool_s_names_are_read() {
    let all = weights::read_all(&fixture("names/expected.safetensors")).unwrap();
    let mut tools: Vec<&str> = all.keys().map(|key| key.split_once('/').unwrap().0).collect();
    tools.dedup();
    assert_eq!(tools.len(), 9);
    for tool in tools {
        let own = all.iter().filter_map(|(key, dense)| {
            let module = key.strip_prefix(tool)?.strip_prefix('/')?;
            Some((module.to_string(), dense.clone()))
        });
        let found = read(&fixture(&format!("names/{tool}.safetensors"))).unwrap();
        assert_changes(&found, &own.collect(), tool);
    }
}

#[test]
fn patterns_of_rank_and_alpha_are_those_of_peft() {
    let names = ["anchored", "ends", "order", "alternatives", "unescaped", "lookahead", "rslora"];
    for name in names {
        let expected = weights::read_all(&fixture(&format!("patterns/{name}.safetensors"))).unwrap();
        assert_eq!(expected.len(), 72);
        assert_changes(&read(&fixture(&format!("patterns/{name}"))).unwrap(), &expected, name);
    }
}

#[test]
fn a_pattern_that_is_none_and_a_rank_that_is_not_there_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("patterns/ends/adapter_model.safetensors"), folder.path().join("adapter_model.safetensors"))
        .unwrap();
    for (config, problem) in [
        (
            r#"{"r": 4, "lora_alpha": 8, "rank_pattern": {"to_k": 2}, "alpha_pattern": {"(to_q": 1}}"#,
            "pattern \"(to_q\"",
        ),
        (r#"{"r": 4, "lora_alpha": 8}"#, "the rank 4, its tensors have 2"),
        (r#"{"r": 4, "lora_alpha": 8, "rank_pattern": [2]}"#, "an object of values by patterns"),
    ] {
        std::fs::write(folder.path().join("adapter_config.json"), config).unwrap();
        let found = read(folder.path()).map(|_| ()).map_err(|e| e.to_string());
        let names = |text: &String| text.contains("adapter_config.json") && text.contains(problem);
        assert!(found.as_ref().is_err_and(names), "{found:?}");
    }
}

#[test]
fn configurations_with_another_effect_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = fixture("patterns/ends");
    std::fs::copy(source.join("adapter_model.safetensors"), folder.path().join("adapter_model.safetensors")).unwrap();
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(source.join("adapter_config.json")).unwrap()).unwrap();
    let with = |key: &str, value: serde_json::Value| {
        let mut config = config.clone();
        config[key] = value;
        std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
        read(folder.path()).map(|found| found.len()).map_err(|e| e.to_string())
    };
    // PEFT takes the first product off the base weights when it loads these.
    for init in ["pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga"] {
        let error = with("init_lora_weights", init.into()).unwrap_err();
        assert!(error.contains("adapter_config.json") && error.contains("init_lora_weights is"), "{error}");
    }
    for (key, value) in [
        ("use_dora", true.into()),
        ("use_qalora", true.into()),
        ("lora_bias", true.into()),
        ("bias", "all".into()),
        ("layer_replication", serde_json::json!([[0, 2], [1, 3]])),
        ("alora_invocation_tokens", serde_json::json!([7])),
    ] {
        let error = with(key, value).unwrap_err();
        assert!(error.contains("only plain LoRA is supported") && error.contains(key), "{error}");
    }
    for (key, value) in [
        ("init_lora_weights", "gaussian".into()),
        ("init_lora_weights", true.into()),
        ("init_lora_weights", "eva".into()),
        ("lora_bias", false.into()),
        ("layer_replication", serde_json::Value::Null),
        ("megatron_core", "megatron.core".into()),
    ] {
        assert_eq!(with(key, value), Ok(72), "{key}");
    }
}

#[test]
fn keys_that_change_a_layer_otherwise_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.safetensors");
    for (tool, layer) in [
        ("kohya", "lora_unet_joint_blocks_0_x_block_attn_proj"),
        ("comfyui", "diffusion_model.joint_blocks.0.x_block.attn.proj"),
        ("diffusers", "transformer.transformer_blocks.0.attn.to_q"),
    ] {
        for end in
            ["diff", "diff_b", "set_weight", "w_norm", "lora_B.bias", "lora_up.bias", "hada_w1_a", "dora_scale", "else"]
        {
            let mut tensors = weights::read_all(&fixture(&format!("names/{tool}.safetensors"))).unwrap();
            let key = format!("{layer}.{end}");
            tensors.insert(key.clone(), Tensor::zeros((2, 2), candle_core::DType::F32, &Device::Cpu).unwrap());
            weights::write(&file, &tensors, &BTreeMap::new()).unwrap();
            let error = read(&file).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(&format!("key {key} is ")), "{error}");
        }
    }
}

#[test]
fn weights_of_several_files_add_up() {
    let file = |name: &str, weight: f64| WeightedFile { path: fixture(&format!("names/{name}.safetensors")), weight };
    let (a, b) = (read(&file("diffusers", 1.0).path).unwrap(), read(&file("kohya", 1.0).path).unwrap());
    let sum = read_all(&[file("diffusers", 0.5), file("kohya", -2.0)]).unwrap();
    assert!(sum.keys().all(|layer| a.contains_key(layer) || b.contains_key(layer)));
    for (layer, adapter) in &sum {
        let part = |of: &Adapters, weight: f64| {
            let zeros = || Tensor::zeros((adapter.sizes().1, adapter.sizes().0), candle_core::DType::F32, &Device::Cpu);
            let delta = of.get(layer).map_or_else(|| zeros().unwrap(), |adapter| adapter.delta().unwrap());
            (delta * weight).unwrap()
        };
        assert_close(&adapter.delta().unwrap(), &(part(&a, 0.5) + part(&b, -2.0)).unwrap(), layer);
    }
    // One alone, and one with the weight 1, which stays as its file has it.
    let half = read_all(&[file("diffusers", 0.5)]).unwrap();
    let whole = read_all(&[file("diffusers", 1.0)]).unwrap();
    for (layer, adapter) in &a {
        assert_close(&half[layer].delta().unwrap(), &(adapter.delta().unwrap() * 0.5).unwrap(), layer);
        let values = |adapter: &dyn Adapter| adapter.parameters()[1].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(whole[layer].as_ref()), values(adapter.as_ref()));
    }
    assert!(read_all(&[]).unwrap().is_empty());
    let missing = read_all(&[file("diffusers", 1.0), file("none", 1.0)]).unwrap_err().to_string();
    assert!(missing.contains("none.safetensors"), "{missing}");
}

#[test]
fn text_encoders_are_left_out_with_a_word() {
    let out = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.args(["export", "--format", "diffusers", "--lora"]).arg(fixture("names/onetrainer.safetensors"));
    let output = command.arg("--out").arg(out.path().join("x.safetensors")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    for part in ["7 keys belong to text encoders", "2 of lora_te3 (such as lora_te3_text_model", "1 of bundle_emb"] {
        assert!(said.contains(part), "{said}");
    }
}
