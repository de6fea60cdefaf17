//! Text encoders in files of their own, or within a model's one file: names and sizes.
use crate::config::TextEncoderKind;
use crate::model::weights::naming::{ModuleNames, Naming, SAME_NAMES};
use crate::model::weights::shapes::Shapes;
use serde_json::{Value, json};

/// What is known of a text encoder besides its tensors.
pub struct OriginalEncoder {
    /// What its tensors' names begin with within a model's file.
    pub prefix: &'static str,
    /// What files of it are usually called.
    pub file: &'static str,
    /// Tensors of which it has one, whatever the names.
    pub marks: &'static [&'static str],
    /// Its names.
    pub naming: &'static Naming,
    /// Keys of its `config.json` as the released encoder has them.
    pub usual: fn() -> Value,
    /// Keys of its `config.json` that the shapes show.
    pub sizes: fn(&Shapes) -> Value,
}

/// A text encoder's.
pub fn of(kind: TextEncoderKind) -> OriginalEncoder {
    let clip = |prefix, file, usual| OriginalEncoder {
        prefix,
        file,
        marks: &["text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight"],
        naming: &SAME_NAMES,
        usual,
        sizes: clip_sizes,
    };
    match kind {
        TextEncoderKind::ClipL => {
            let usual = || usual_clip(768, 12, "quick_gelu");
            clip("text_encoders.clip_l.transformer.", "clip_l.safetensors", usual)
        }
        TextEncoderKind::ClipG => {
            let usual = || usual_clip(1280, 32, "gelu");
            clip("text_encoders.clip_g.transformer.", "clip_g.safetensors", usual)
        }
        TextEncoderKind::T5 => OriginalEncoder {
            prefix: "text_encoders.t5xxl.transformer.",
            file: "t5xxl_fp16.safetensors",
            marks: &["encoder.block.0.layer.0.SelfAttention.q.weight", "enc.blk.0.attn_q.weight"],
            naming: &T5_OF_LLAMA_CPP,
            usual: || json!({"layer_norm_epsilon": 1e-6, "relative_attention_max_distance": 128}),
            sizes: t5_sizes,
        },
        TextEncoderKind::Qwen3 => OriginalEncoder {
            prefix: "text_encoders.qwen3_4b.transformer.",
            file: "qwen_3_4b.safetensors",
            marks: &[
                "model.layers.0.self_attn.q_norm.weight",
                "layers.0.self_attn.q_norm.weight",
                "blk.0.attn_q_norm.weight",
            ],
            naming: &QWEN3_OF_LLAMA_CPP,
            usual: || {
                let rope = json!({"rope_theta": 1e6});
                json!({"rms_norm_eps": 1e-6, "rope_parameters": rope, "max_position_embeddings": 40960})
            },
            sizes: qwen3_sizes,
        },
    }
}

/// T5's names in llama.cpp (`gguf-py/gguf/tensor_mapping.py`), which GGUF files have.
static T5_OF_LLAMA_CPP: Naming = Naming { modules: &[&T5_MODULES], swaps_halves: |_, _| false };

const T5_MODULES: [ModuleNames; 2] = [
    ModuleNames {
        original: "enc.blk.*",
        diffusers: "encoder.block.*.layer",
        layers: &[
            ("attn_q", &[("0.SelfAttention.q", 1)]),
            ("attn_k", &[("0.SelfAttention.k", 1)]),
            ("attn_v", &[("0.SelfAttention.v", 1)]),
            ("attn_o", &[("0.SelfAttention.o", 1)]),
            ("attn_rel_b", &[("0.SelfAttention.relative_attention_bias", 1)]),
            ("attn_norm", &[("0.layer_norm", 1)]),
            ("ffn_gate", &[("1.DenseReluDense.wi_0", 1)]),
            ("ffn_up", &[("1.DenseReluDense.wi_1", 1)]),
            ("ffn_down", &[("1.DenseReluDense.wo", 1)]),
            ("ffn_norm", &[("1.layer_norm", 1)]),
        ],
    },
    ModuleNames::alone(&[("token_embd", &[("shared", 1)]), ("enc.output_norm", &[("encoder.final_layer_norm", 1)])]),
];

/// Qwen3's names there.
static QWEN3_OF_LLAMA_CPP: Naming = Naming { modules: &[&QWEN3_MODULES], swaps_halves: |_, _| false };

const QWEN3_MODULES: [ModuleNames; 2] = [
    ModuleNames {
        original: "blk.*",
        diffusers: "model.layers.*",
        layers: &[
            ("attn_norm", &[("input_layernorm", 1)]),
            ("attn_q", &[("self_attn.q_proj", 1)]),
            ("attn_k", &[("self_attn.k_proj", 1)]),
            ("attn_v", &[("self_attn.v_proj", 1)]),
            ("attn_output", &[("self_attn.o_proj", 1)]),
            ("attn_q_norm", &[("self_attn.q_norm", 1)]),
            ("attn_k_norm", &[("self_attn.k_norm", 1)]),
            ("ffn_norm", &[("post_attention_layernorm", 1)]),
            ("ffn_gate", &[("mlp.gate_proj", 1)]),
            ("ffn_up", &[("mlp.up_proj", 1)]),
            ("ffn_down", &[("mlp.down_proj", 1)]),
        ],
    },
    ModuleNames::alone(&[
        ("token_embd", &[("model.embed_tokens", 1)]),
        ("output_norm", &[("model.norm", 1)]),
        ("output", &[("lm_head", 1)]),
    ]),
];

fn usual_clip(hidden: usize, layers: usize, act: &str) -> Value {
    json!({
        "vocab_size": 49408,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden / 64,
        "max_position_embeddings": 77,
        "projection_dim": hidden,
        "hidden_act": act,
        // Wrong in the released configurations: it means the highest.
        "eos_token_id": 2,
    })
}

fn qwen3_sizes(shapes: &Shapes) -> Value {
    let prefix = if shapes.has("embed_tokens.weight") { "" } else { "model." };
    let size = |name: &str, dimension| shapes.size(&format!("{prefix}{name}.weight"), dimension);
    let layer = |name: &str, dimension| size(&format!("layers.0.{name}"), dimension);
    let head_dim = layer("self_attn.q_norm", 0).filter(|head_dim| *head_dim > 0);
    let heads = |name: &str| layer(name, 0).zip(head_dim).map(|(rows, head_dim)| rows / head_dim);
    json!({
        "vocab_size": size("embed_tokens", 0),
        "hidden_size": size("embed_tokens", 1),
        "intermediate_size": layer("mlp.down_proj", 1),
        "num_hidden_layers": shapes.count(&format!("{prefix}layers.")),
        "num_attention_heads": heads("self_attn.q_proj"),
        "num_key_value_heads": heads("self_attn.k_proj"),
        "head_dim": head_dim,
    })
}

fn clip_sizes(shapes: &Shapes) -> Value {
    let prefix = if shapes.has("embeddings.token_embedding.weight") { "" } else { "text_model." };
    let size = |name: &str, dimension| shapes.size(&format!("{prefix}{name}"), dimension);
    let hidden = size("embeddings.token_embedding.weight", 1);
    json!({
        "vocab_size": size("embeddings.token_embedding.weight", 0),
        "hidden_size": hidden,
        "intermediate_size": size("encoder.layers.0.mlp.fc1.weight", 0),
        "num_hidden_layers": shapes.count(&format!("{prefix}encoder.layers.")),
        "max_position_embeddings": size("embeddings.position_embedding.weight", 0),
        "projection_dim": shapes.size("text_projection.weight", 0).or(hidden),
    })
}

fn t5_sizes(shapes: &Shapes) -> Value {
    let block = "encoder.block.0.layer";
    let size = |name: &str, dimension| shapes.size(name, dimension);
    let embedding = ["shared.weight", "encoder.embed_tokens.weight"].into_iter().find(|name| shapes.has(name));
    let embedding = |dimension| size(embedding?, dimension);
    let attention = |name: &str, dimension| size(&format!("{block}.0.SelfAttention.{name}.weight"), dimension);
    let heads = attention("relative_attention_bias", 1).filter(|heads| *heads > 0);
    let is_gated = shapes.has(&format!("{block}.1.DenseReluDense.wi_0.weight"));
    json!({
        "vocab_size": embedding(0),
        "d_model": embedding(1),
        "d_kv": attention("q", 0).zip(heads).map(|(inner, heads)| inner / heads),
        "d_ff": size(&format!("{block}.1.DenseReluDense.wo.weight"), 1),
        "num_layers": shapes.count("encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": attention("relative_attention_bias", 0),
        "feed_forward_proj": if is_gated { "gated-gelu" } else { "relu" },
    })
}
