//! Adapter files: exports hold the trained weights, under the names that other tools expect.
use candle_core::{DType, Device, Tensor};
use rand::{Rng, SeedableRng};
use seg4diff::model::adapters::formats::{Format, Origin, export, read};
use seg4diff::model::adapters::lora::Lora;
use seg4diff::model::adapters::{Adapter, Adapters};
use seg4diff::model::families::sd3;
use seg4diff::model::weights;
use sha2::Digest;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const WIDTH: usize = 12;

/// The LoRA that an adapter is.
fn lora(adapter: &dyn Adapter) -> &Lora {
    (adapter as &dyn std::any::Any).downcast_ref().unwrap()
}

fn random(rng: &mut impl Rng, rows: usize, columns: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * columns).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
}

/// A random adapter of modules given as (name, in, out, rank, alpha).
fn adapter(modules: &[(&str, usize, usize, usize, f64)]) -> Adapters {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let lora = |&(name, input, output, rank, alpha): &(&str, usize, usize, usize, f64)| -> (String, Box<dyn Adapter>) {
        let (down, up) = (random(&mut rng, rank, input), random(&mut rng, output, rank));
        (name.to_string(), Box::new(Lora { down, up, alpha }))
    };
    modules.iter().map(lora).collect()
}

/// Every kind of module of a block, in the first and the last of two blocks; alpha differs from rank.
fn every_module() -> Adapters {
    let square = |name| (name, WIDTH, WIDTH, 3, 5.0);
    adapter(&[
        square("transformer_blocks.0.attn.to_q"),
        square("transformer_blocks.0.attn.to_k"),
        square("transformer_blocks.0.attn.to_v"),
        square("transformer_blocks.0.attn.to_out.0"),
        square("transformer_blocks.0.attn.add_q_proj"),
        square("transformer_blocks.0.attn.add_k_proj"),
        square("transformer_blocks.0.attn.add_v_proj"),
        square("transformer_blocks.0.attn.to_add_out"),
        square("transformer_blocks.0.attn2.to_q"),
        square("transformer_blocks.0.attn2.to_k"),
        square("transformer_blocks.0.attn2.to_v"),
        square("transformer_blocks.0.attn2.to_out.0"),
        ("transformer_blocks.0.ff.net.0.proj", WIDTH, 4 * WIDTH, 3, 5.0),
        ("transformer_blocks.0.ff.net.2", 4 * WIDTH, WIDTH, 3, 5.0),
        ("transformer_blocks.0.ff_context.net.0.proj", WIDTH, 4 * WIDTH, 3, 5.0),
        ("transformer_blocks.0.ff_context.net.2", 4 * WIDTH, WIDTH, 3, 5.0),
        ("transformer_blocks.0.norm1.linear", WIDTH, 9 * WIDTH, 3, 5.0),
        ("transformer_blocks.0.norm1_context.linear", WIDTH, 6 * WIDTH, 3, 5.0),
        square("transformer_blocks.11.attn.to_k"),
        ("transformer_blocks.11.norm1_context.linear", WIDTH, 2 * WIDTH, 3, 5.0),
    ])
}

fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_dtype(DType::F32).unwrap().to_vec2().unwrap()
}

#[track_caller]
fn assert_close(found: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    let difference = norm(&(found - expected).unwrap());
    assert!(difference <= 1e-5 * norm(expected), "{what}: differs by {difference}, norm {}", norm(expected));
}

#[track_caller]
fn assert_same_effect(found: &Adapters, expected: &Adapters) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (module, lora) in expected {
        assert_close(&found[module].delta().unwrap(), &lora.delta().unwrap(), module);
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/adapters").join(name)
}

#[test]
fn every_format_reads_back_as_it_was_trained() {
    let trained = every_module();
    for format in [Format::Diffusers, Format::Peft, Format::Comfyui] {
        let out = folder();
        let file = export(&trained, format, out.path(), &Origin::default()).unwrap();
        assert_same_effect(&read(&file).unwrap(), &trained);
        assert_same_effect(&read(out.path()).unwrap(), &trained);
    }
}

#[test]
fn the_same_adapter_gives_the_same_bytes() {
    for format in [Format::Diffusers, Format::Peft, Format::Comfyui] {
        let written = || {
            let out = folder();
            std::fs::read(export(&every_module(), format, out.path(), &Origin::default()).unwrap()).unwrap()
        };
        assert_eq!(written(), written(), "{format:?}");
    }
}

/// An adapter file has the usual mode of a new file, not that of a temporary one: others who may read the folder may
/// read it.
#[cfg(unix)]
#[test]
fn an_export_has_the_mode_of_an_ordinary_file() {
    use std::os::unix::fs::PermissionsExt;
    let out = folder();
    let mode = |file: &Path| std::fs::metadata(file).unwrap().permissions().mode();
    std::fs::write(out.path().join("ordinary"), "").unwrap();
    let file = export(&every_module(), Format::Diffusers, out.path(), &Origin::default()).unwrap();
    assert_eq!(mode(&file), mode(&out.path().join("ordinary")));
}

#[test]
fn diffusers_file_folds_the_scale_and_has_no_alpha() {
    let trained = every_module();
    let kept = folder();
    let out = kept.path().join("a/b/lora.safetensors");
    export(&trained, Format::Diffusers, &out, &Origin::default()).unwrap();
    let header = weights::header(&out).unwrap();
    assert_eq!(header.metadata, BTreeMap::from([("format".to_string(), "pt".to_string())]));
    let tensors = weights::read_all(&out).unwrap();
    assert_eq!(tensors.len(), 2 * trained.len());
    for (module, lora) in &trained {
        let a = &tensors[&format!("transformer.{module}.lora_A.weight")];
        let b = &tensors[&format!("transformer.{module}.lora_B.weight")];
        assert_eq!(rows(a), rows(lora.parameters()[0]));
        assert_close(&b.matmul(a).unwrap(), &lora.delta().unwrap(), module);
    }
}

#[test]
fn peft_folder_keeps_matrices_and_says_rank_and_alpha() {
    let trained = adapter(&[
        ("transformer_blocks.0.attn.to_q", WIDTH, WIDTH, 4, 8.0),
        ("transformer_blocks.1.attn.to_q", WIDTH, WIDTH, 2, 8.0),
        ("transformer_blocks.11.attn.to_q", WIDTH, WIDTH, 4, 1.0),
    ]);
    let out = folder();
    export(&trained, Format::Peft, out.path(), &Origin::default()).unwrap();
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(out.path().join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["peft_type"], "LORA");
    assert_eq!((config["r"].as_u64(), config["lora_alpha"].as_f64()), (Some(4), Some(8.0)));
    assert_eq!(config["rank_pattern"], serde_json::json!({"transformer_blocks.1.attn.to_q": 2}));
    assert_eq!(config["alpha_pattern"], serde_json::json!({"transformer_blocks.11.attn.to_q": 1.0}));
    assert_eq!(config["target_modules"], serde_json::json!(trained.keys().collect::<Vec<_>>()));
    let tensors = weights::read_all(&out.path().join("adapter_model.safetensors")).unwrap();
    let b = &tensors["base_model.model.transformer_blocks.0.attn.to_q.lora_B.weight"];
    assert_eq!(rows(b), rows(&lora(trained["transformer_blocks.0.attn.to_q"].as_ref()).up));
    assert_same_effect(&read(out.path()).unwrap(), &trained);
    // under another name, the configuration is beside it as well
    let other = out.path().join("other/mine.safetensors");
    export(&trained, Format::Peft, &other, &Origin::default()).unwrap();
    assert_same_effect(&read(&other).unwrap(), &trained);
}

/// ΔW of a kohya module as its loaders compute it: alpha over down's number of rows.
fn kohya_delta(tensors: &BTreeMap<String, Tensor>, stem: &str) -> Tensor {
    let down = &tensors[&format!("{stem}.lora_down.weight")];
    let up = &tensors[&format!("{stem}.lora_up.weight")];
    let alpha = tensors[&format!("{stem}.alpha")].to_scalar::<f32>().unwrap();
    (up.matmul(down).unwrap() * (alpha as f64 / down.dims()[0] as f64)).unwrap()
}

#[test]
fn comfyui_file_fuses_q_k_and_v_with_alpha_for_all_three() {
    let trained = every_module();
    let kept = folder();
    let out = kept.path().join("lora.safetensors");
    export(&trained, Format::Comfyui, &out, &Origin::default()).unwrap();
    let tensors = weights::read_all(&out).unwrap();
    for (stem, parts) in [
        ("x_block_attn_qkv", ["attn.to_q", "attn.to_k", "attn.to_v"]),
        ("context_block_attn_qkv", ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]),
        ("x_block_attn2_qkv", ["attn2.to_q", "attn2.to_k", "attn2.to_v"]),
    ] {
        let stem = format!("lora_unet_joint_blocks_0_{stem}");
        assert_eq!(tensors[&format!("{stem}.lora_down.weight")].dims(), [9, WIDTH]);
        assert_eq!(tensors[&format!("{stem}.alpha")].to_scalar::<f32>().unwrap(), 15.0);
        let up = rows(&tensors[&format!("{stem}.lora_up.weight")]);
        for (row, values) in up.iter().enumerate() {
            for (column, value) in values.iter().enumerate() {
                let part = &trained[&format!("transformer_blocks.0.{}", parts[row / WIDTH])];
                let expected = if row / WIDTH == column / 3 {
                    rows(&lora(part.as_ref()).up)[row % WIDTH][column % 3]
                } else {
                    0.0
                };
                assert_eq!(*value, expected, "{stem} row {row} column {column}");
            }
        }
        let dense = parts.map(|p| trained[&format!("transformer_blocks.0.{p}")].delta().unwrap());
        assert_close(&kohya_delta(&tensors, &stem), &Tensor::cat(&dense, 0).unwrap(), &stem);
    }
    for (stem, module) in [
        ("x_block_attn_proj", "attn.to_out.0"),
        ("context_block_attn_proj", "attn.to_add_out"),
        ("x_block_attn2_proj", "attn2.to_out.0"),
        ("x_block_mlp_fc1", "ff.net.0.proj"),
        ("x_block_mlp_fc2", "ff.net.2"),
        ("context_block_mlp_fc1", "ff_context.net.0.proj"),
        ("context_block_mlp_fc2", "ff_context.net.2"),
        ("x_block_adaLN_modulation_1", "norm1.linear"),
        ("context_block_adaLN_modulation_1", "norm1_context.linear"),
    ] {
        let expected = trained[&format!("transformer_blocks.0.{module}")].delta().unwrap();
        assert_close(&kohya_delta(&tensors, &format!("lora_unet_joint_blocks_0_{stem}")), &expected, stem);
    }
}

#[test]
fn comfyui_file_leaves_rows_of_untrained_parts_at_zero() {
    let trained = every_module();
    let kept = folder();
    let out = kept.path().join("lora.safetensors");
    export(&trained, Format::Comfyui, &out, &Origin::default()).unwrap();
    let change = kohya_delta(&weights::read_all(&out).unwrap(), "lora_unet_joint_blocks_11_x_block_attn_qkv");
    assert_eq!(change.dims(), [3 * WIDTH, WIDTH]);
    let k = trained["transformer_blocks.11.attn.to_k"].delta().unwrap();
    assert_close(&change.narrow(0, WIDTH, WIDTH).unwrap(), &k, "rows of k");
    for start in [0, 2 * WIDTH] {
        assert!(rows(&change.narrow(0, start, WIDTH).unwrap()).concat().iter().all(|v| *v == 0.0));
    }
}

#[test]
fn comfyui_file_fuses_parts_of_different_rank_and_scale() {
    let trained = adapter(&[
        ("transformer_blocks.2.attn.to_q", WIDTH, WIDTH, 4, 2.0),
        ("transformer_blocks.2.attn.to_v", WIDTH, WIDTH, 2, 7.0),
    ]);
    let kept = folder();
    let out = kept.path().join("lora.safetensors");
    export(&trained, Format::Comfyui, &out, &Origin::default()).unwrap();
    let change = kohya_delta(&weights::read_all(&out).unwrap(), "lora_unet_joint_blocks_2_x_block_attn_qkv");
    let part = |start| change.narrow(0, start, WIDTH).unwrap();
    assert_close(&part(0), &trained["transformer_blocks.2.attn.to_q"].delta().unwrap(), "q");
    assert_close(&part(2 * WIDTH), &trained["transformer_blocks.2.attn.to_v"].delta().unwrap(), "v");
    assert_same_effect(&read(&out).unwrap(), &trained);
}

/// The last block's text modulation is (scale, shift) in diffusers and (shift, scale) in the original checkpoint.
#[test]
fn comfyui_file_swaps_the_halves_of_the_last_text_modulation() {
    let trained = every_module();
    let kept = folder();
    let out = kept.path().join("lora.safetensors");
    export(&trained, Format::Comfyui, &out, &Origin::default()).unwrap();
    let stem = "lora_unet_joint_blocks_11_context_block_adaLN_modulation_1";
    let change = kohya_delta(&weights::read_all(&out).unwrap(), stem);
    let ours = trained["transformer_blocks.11.norm1_context.linear"].delta().unwrap();
    assert_close(&change.narrow(0, 0, WIDTH).unwrap(), &ours.narrow(0, WIDTH, WIDTH).unwrap(), "shift");
    assert_close(&change.narrow(0, WIDTH, WIDTH).unwrap(), &ours.narrow(0, 0, WIDTH).unwrap(), "scale");
}

#[test]
fn comfyui_file_says_what_it_is() {
    let kept = folder();
    let out = kept.path().join("lora.safetensors");
    let origin = Origin {
        release: Some(sd3::release(true, true)),
        resolution: Some(512),
        steps: Some(1000),
        seed: Some(3),
        title: None,
    };
    export(&every_module(), Format::Comfyui, &out, &origin).unwrap();
    let metadata = weights::header(&out).unwrap().metadata;
    let bytes = std::fs::read(&out).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let hash: String = sha2::Sha256::digest(&bytes[8 + header..]).iter().map(|b| format!("{b:02x}")).collect();
    for (key, value) in [
        ("ss_v2", "False"),
        ("ss_base_model_version", "5-medium"),
        ("ss_network_module", "networks.lora_sd3"),
        ("ss_network_dim", "3"),
        ("ss_network_alpha", "5"),
        ("ss_network_args", "{}"),
        ("ss_resolution", "(512, 512)"),
        ("ss_steps", "1000"),
        ("ss_seed", "3"),
        ("sshs_model_hash", &hash),
        ("modelspec.sai_model_spec", "1.0.1"),
        ("modelspec.architecture", "stable-diffusion-3-5-medium/lora"),
        ("modelspec.resolution", "512x512"),
        ("modelspec.hash_sha256", &format!("0x{hash}")),
    ] {
        assert_eq!(metadata.get(key).map(String::as_str), Some(value), "{key}");
    }
    // too short for the bytes that the older hash covers: the hash of nothing
    assert_eq!(metadata["sshs_legacy_hash"], "e3b0c442");
    assert!(metadata.keys().all(|key| !key.contains("date") && !key.contains("time")));
}

/// Files written by PEFT and diffusers, with the ΔW that PEFT computes.
#[test]
fn files_of_peft_and_diffusers_mean_here_what_they_mean_there() {
    for (name, expected, folded) in [
        ("peft", "expected_peft.safetensors", false),
        ("rslora", "expected_rslora.safetensors", false),
        ("with_metadata.safetensors", "expected_peft.safetensors", false),
        ("folded.safetensors", "expected_peft.safetensors", true),
    ] {
        let found = read(&fixture(name)).unwrap();
        let with_scale = read(&fixture("peft")).unwrap();
        let expected = weights::read_all(&fixture(expected)).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
        for (module, dense) in &expected {
            // a file without alpha has scale 1, whatever its writer intended
            let scale = if folded { lora(with_scale[module].as_ref()).scale() } else { 1.0 };
            let change = (found[module].delta().unwrap() * scale).unwrap();
            assert_close(&change, dense, &format!("{name} {module}"));
        }
    }
}

#[test]
fn an_export_that_does_not_read_back_leaves_no_file() {
    let mut broken = every_module();
    let up = Tensor::full(f32::NAN, (WIDTH, 3), &Device::Cpu).unwrap();
    let module = "transformer_blocks.0.attn.to_k";
    let lora = Lora { up, ..lora(broken[module].as_ref()).clone() };
    broken.insert(module.to_string(), Box::new(lora));
    for format in [Format::Diffusers, Format::Peft, Format::Comfyui] {
        let out = folder();
        let target = if format == Format::Peft { out.path().to_path_buf() } else { out.path().join("x.safetensors") };
        let error = export(&broken, format, &target, &Origin::default()).unwrap_err().to_string();
        assert!(error.contains("transformer_blocks.0.attn.to_k"), "{error}");
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0, "{format:?} left something");
    }
}

#[test]
fn a_failing_export_keeps_the_file_that_was_there() {
    let kept = folder();
    let out = kept.path().join("lora.safetensors");
    export(&every_module(), Format::Comfyui, &out, &Origin::default()).unwrap();
    let before = std::fs::read(&out).unwrap();
    let unnamed = adapter(&[("transformer_blocks.0.attn.norm_q", WIDTH, WIDTH, 2, 2.0)]);
    let error = export(&unnamed, Format::Comfyui, &out, &Origin::default()).unwrap_err().to_string();
    assert!(error.contains("transformer_blocks.0.attn.norm_q"), "{error}");
    assert_eq!(std::fs::read(&out).unwrap(), before);
}

#[test]
fn export_refuses_nothing_to_write_and_a_file_for_a_folder() {
    let out = folder();
    let error = export(&Adapters::new(), Format::Diffusers, out.path(), &Origin::default()).unwrap_err();
    assert!(error.to_string().contains("no modules"), "{error}");
    std::fs::write(out.path().join("notes"), "a file").unwrap();
    let error = export(&every_module(), Format::Peft, &out.path().join("notes"), &Origin::default());
    assert!(matches!(error, Err(seg4diff::Error::Usage(_))));
}

#[test]
fn a_wrong_file_is_refused_by_name_of_what_is_wrong() {
    let out = folder();
    let file = out.path().join("adapter.safetensors");
    let a = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight";
    let b = "transformer.transformer_blocks.0.attn.to_q.lora_B.weight";
    let fused = "lora_unet_joint_blocks_0_x_block_attn_qkv";
    let (fused_down, fused_up) = (format!("{fused}.lora_down.weight"), format!("{fused}.lora_up.weight"));
    type Tensors<'a> = Vec<(&'a str, usize, usize)>;
    let cases: Vec<(Tensors, &str)> = vec![
        (vec![("text_encoder.text_model.x.lora_A.weight", 2, 8)], "only keys of text encoders: 1 of text_encoder"),
        (vec![("lora_te1_text_model_x.lora_down.weight", 2, 8)], "lora_te1_text_model_x"),
        (vec![(a, 2, 8), (b, 8, 2), ("transformer.transformer_blocks.0.attn.to_q.alpha", 2, 1)], "attn.to_q.alpha"),
        (vec![("transformer_blocks.0.attn.to_q.weight", 8, 8)], "transformer_blocks.0.attn.to_q.weight"),
        (vec![(a, 2, 8)], "transformer_blocks.0.attn.to_q has no up (B)"),
        (vec![(b, 8, 2)], "transformer_blocks.0.attn.to_q has no down (A)"),
        (vec![(a, 2, 8), (b, 8, 3)], "[2, 8] and B [8, 3]"),
        (vec![(a, 2, 8), (b, 8, 2), ("transformer.transformer_blocks.1.attn.to_q.lora.up.weight", 8, 2)], "mixes"),
        (vec![(a, 2, 8), (b, 8, 2), ("base_model.model.transformer_blocks.1.attn.to_q.lora_B.weight", 8, 2)], "mixes"),
        (vec![("base_model.model.transformer_blocks.1.attn.to_q.lora_B.weight", 8, 2)], "adapter_config.json"),
        (vec![(&fused_down, 6, 8), (&fused_up, 25, 6)], "25 rows"),
        (vec![(&fused_down, 6, 8)], "has no up (B)"),
        (vec![("lora_unet_joint_blocks_x_x_block_attn_qkv.lora_up.weight", 2, 8)], "joint_blocks_x_x_block"),
        (vec![("lora_unet_joint_blocks_0_x_block_attn_ln_q.lora_up.weight", 2, 8)], "ln_q"),
        (vec![("lora_unet_joint_blocks_0_x_block_attn_qkv.dora_scale", 2, 8)], "dora_scale is of a DoRA adapter"),
        (
            vec![(a, 2, 8), (b, 8, 2), ("transformer.transformer_blocks.0.attn.to_q.lora_magnitude_vector", 8, 1)],
            "DoRA",
        ),
        (vec![("lycoris_transformer_blocks_0_attn_to_q.hada_w1_a", 8, 2)], "LoHa"),
        (
            vec![("diffusion_model.layers.0.attention.qkv.lora_A.weight", 2, 8)],
            "is not a key of an SD3 or FLUX.1 or FLUX.2-klein adapter",
        ),
        (vec![], "no tensors"),
    ];
    for (tensors, expected) in cases {
        let zeros = |rows, columns| Tensor::zeros((rows, columns), DType::F32, &Device::Cpu).unwrap();
        let tensors = tensors.into_iter().map(|(name, r, c)| (name.to_string(), zeros(r, c))).collect();
        weights::write(&file, &tensors, &BTreeMap::new()).unwrap();
        let error = read(&file).unwrap_err().to_string();
        assert!(error.contains(expected), "expected {expected:?} in {error:?}");
        assert!(error.contains("adapter"), "{error:?} names no file");
    }
}

#[test]
fn a_damaged_or_missing_file_is_one_clear_error() {
    let out = folder();
    let missing = read(&out.path().join("none.safetensors")).unwrap_err().to_string();
    assert!(missing.contains("none.safetensors"), "{missing}");
    let empty = read(out.path()).unwrap_err().to_string();
    assert!(empty.contains("pytorch_lora_weights.safetensors"), "{empty}");
    let file = export(&every_module(), Format::Diffusers, out.path(), &Origin::default()).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 5]).unwrap();
    let cut = read(&file).unwrap_err().to_string();
    assert!(cut.contains("cut short"), "{cut}");
    export(&every_module(), Format::Peft, out.path(), &Origin::default()).unwrap();
    let two = read(out.path()).unwrap_err().to_string();
    assert!(two.contains("more than one"), "{two}");
    std::fs::remove_file(&file).unwrap();
    std::fs::write(out.path().join("adapter_config.json"), r#"{"r": 3, "lora_alpha": 5, "use_dora": true}"#).unwrap();
    let dora = read(out.path()).unwrap_err().to_string();
    assert!(dora.contains("use_dora true"), "{dora}");
}

#[test]
fn half_precision_files_are_read_as_f32() {
    let kept = folder();
    let out = kept.path().join("lora.safetensors");
    let trained = every_module();
    let file = export(&trained, Format::Comfyui, &out, &Origin::default()).unwrap();
    let halved: BTreeMap<String, Tensor> = weights::read_all(&file)
        .unwrap()
        .into_iter()
        .map(|(name, tensor)| (name, tensor.to_dtype(DType::BF16).unwrap()))
        .collect();
    weights::write(&file, &halved, &BTreeMap::new()).unwrap();
    let found = read(&file).unwrap();
    let module = "transformer_blocks.0.ff.net.2";
    assert_eq!(lora(found[module].as_ref()).up.dtype(), DType::F32);
    let expected = lora(trained[module].as_ref()).up.to_dtype(DType::BF16).unwrap();
    assert_eq!(rows(&lora(found[module].as_ref()).up), rows(&expected));
}

/// A file of the released code as converted by the command in docs/export.md (fixtures/map_settings/gen.py): names of
/// its whole model, the score head beside the adapter, alpha equal to the rank.
#[test]
fn a_published_adapter_is_read_by_its_own_names() {
    let file = fixture("../map_settings/lora_weights.safetensors");
    let found = read(&file).unwrap();
    let tensors = weights::read_all(&file).unwrap();
    assert_eq!((found.len(), tensors.len()), (12, 30));
    for (module, adapter) in &found {
        let lora = lora(adapter.as_ref());
        assert_eq!((lora.rank(), lora.alpha), (2, 2.0));
        let part = |side: &str| &tensors[&format!("backbone.transformer.{module}.lora_{side}.default.weight")];
        assert_close(&lora.delta().unwrap(), &part("B").matmul(part("A")).unwrap(), module);
    }
    assert!(found.contains_key("transformer_blocks.2.attn.to_out.0"));
    // Exported for another tool by the command.
    let out = folder();
    let target = out.path().join("published.safetensors");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_seg4diff"));
    command.args(["export", "--format", "diffusers"]).arg("--lora").arg(&file).arg("--out").arg(&target);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_same_effect(&read(&target).unwrap(), &found);
    assert!(weights::read_all(&target).unwrap().keys().all(|key| key.starts_with("transformer.transformer_blocks.")));
}

#[test]
fn released_files_with_other_things_are_refused_by_name() {
    let out = folder();
    let tensors = weights::read_all(&fixture("../map_settings/lora_weights.safetensors")).unwrap();
    let file = out.path().join("x.safetensors");
    let write = |tensors: &BTreeMap<String, Tensor>| weights::write(&file, tensors, &BTreeMap::new()).unwrap();
    let some = tensors.values().next().unwrap().clone();
    let with = |name: &str| {
        let mut all = tensors.clone();
        all.insert(name.to_string(), some.clone());
        all
    };
    let head = tensors.iter().filter(|(name, _)| name.starts_with("attn_mlp.")).map(|(n, t)| (n.clone(), t.clone()));
    let base = "backbone.transformer.transformer_blocks.0.attn.to_q.base_layer.weight";
    let lone = "backbone.transformer.transformer_blocks.0.attn.to_v.lora_B.default.weight";
    let without: BTreeMap<_, _> = tensors.clone().into_iter().filter(|(name, _)| name != lone).collect();
    for (tensors, problem) in [
        (with(base), "to_q.base_layer.weight is no part of an adapter: the file holds the whole model"),
        (with("optimizer.0"), "key optimizer.0 is not a key of an SD3 or FLUX.1 or FLUX.2-klein adapter"),
        (with("transformer.transformer_blocks.0.attn.to_q.lora_A.weight"), "mixes two styles of names"),
        (head.collect(), "holds a score head, but no adapter"),
        (without, "module transformer_blocks.0.attn.to_v has no up (B) matrix"),
    ] {
        write(&tensors);
        let found = read(&file).unwrap_err().to_string();
        assert!(found.contains("x.safetensors") && found.contains(problem), "{found}");
    }
    // Pickles, of the new and the old format, are named as such.
    for start in [&b"PK\x03\x04\0\0\x08\x08archive/data.pkl"[..], b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."] {
        std::fs::write(&file, start).unwrap();
        let found = read(&file).unwrap_err().to_string();
        assert!(found.contains("x.safetensors") && found.contains("torch.save"), "{found}");
    }
}
