//! A model folder that passes the checks made before loading.
use std::path::Path;

/// The files of a diffusers folder, empty except for the sizes that are checked.
pub fn fake_model(folder: &Path) {
    for file in [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "text_encoder_2/config.json",
        "text_encoder_2/model.safetensors.index.json",
        "text_encoder_2/model-1.safetensors",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer_2/tokenizer.json",
        "transformer/config.json",
        "vae/config.json",
    ] {
        let path = folder.join(file);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        let content = match file {
            "transformer/config.json" => r#"{"num_layers": 4, "num_attention_heads": 6, "patch_size": 2}"#,
            "vae/config.json" => r#"{"block_out_channels": [8, 16, 16, 16]}"#,
            "text_encoder_2/model.safetensors.index.json" => r#"{"weight_map": {"a": "model-1.safetensors"}}"#,
            "model_index.json" => r#"{"_class_name": "StableDiffusion3Pipeline"}"#,
            // Safetensors without a tensor.
            _ if file.ends_with(".safetensors") => "\u{2}\0\0\0\0\0\0\0{}",
            _ if file.ends_with(".json") => "{}",
            _ => "",
        };
        std::fs::write(path, content).expect("write");
    }
}
