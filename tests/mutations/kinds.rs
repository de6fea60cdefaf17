//! The kinds of files that are mutated, and the commands that read them.
use super::mutate::Checksums;

/// A file that the program reads.
pub struct Kind {
    pub name: &'static str,
    /// Relative frequency of its mutations, in percent.
    pub share: u64,
    pub file: &'static str,
    pub args: &'static str,
    pub is_text: bool,
    pub checksums: Checksums,
    /// Whether larger numbers rightly take longer.
    pub may_be_long: bool,
}

const TRAIN: &str = "train --config c.toml";
const RESUME: &str = "train --config c.toml --resume --set train.steps=2";
const CACHED: &str = "train --config c.toml --set data.cache=cache";
const COCO: &str = "train --config coco.toml";
const FOLDER: &str = "train --config folder.toml";
const FID: &str = "evaluate fid --real jpegs --generated others --features features";
const SEGMENTATION: &str = "evaluate segmentation --model model --layer 0 --size 32 --images pictures --labels labels \
                            --classes classes.json";
const GENERATE: &str = "generate --model model --prompt cat --size 32 --steps 1 --out out --lora lora.safetensors";
const ONE_FILE: &str = "generate --model one.safetensors --model-file config=model --model-file vae=model/vae --model-file \
                        clip_l=model/text_encoder --model-file clip_g=model/text_encoder_2 --prompt cat --size 32 \
                        --steps 1 --out out";
const GGUF: &str = "generate --model one.gguf --model-file config=model --model-file vae=model/vae --model-file \
                    clip_l=model/text_encoder --model-file clip_g=model/text_encoder_2 --prompt cat --size 32 --steps 1 \
                    --out out";
const T5: &str = "prepare cache --config t5.toml --out out";
const CLIP: &str = "evaluate clip-score --clip clip --images clip_images --captions clip_captions.json";

const fn kind(name: &'static str, share: u64, file: &'static str, args: &'static str) -> Kind {
    Kind { name, share, file, args, is_text: false, checksums: Checksums::None, may_be_long: false }
}

const fn text(name: &'static str, share: u64, file: &'static str, args: &'static str) -> Kind {
    Kind { is_text: true, ..kind(name, share, file, args) }
}

/// The kind that mutates `--set KEY=NUMBER` instead of a file.
pub const SETTINGS: &str = "--set";

pub const KINDS: &[Kind] = &[
    text("config", 6, "c.toml", "train --config c.toml --check"),
    Kind { may_be_long: true, ..text(SETTINGS, 6, "c.toml", TRAIN) },
    Kind { checksums: Checksums::Tar, ..kind("sa1b shard", 8, "data/sa_000000.tar", TRAIN) },
    kind("JPEG", 6, "jpegs/a.jpg", FID),
    kind("progressive JPEG", 4, "jpegs/b.jpg", FID),
    Kind { checksums: Checksums::Png, ..kind("PNG", 6, "jpegs/c.png", FID) },
    kind("WebP", 3, "jpegs/d.webp", FID),
    kind("TIFF", 3, "jpegs/e.tif", FID),
    kind("GIF", 2, "jpegs/f.gif", FID),
    kind("BMP", 2, "jpegs/g.bmp", FID),
    kind("JPEG with EXIF", 2, "jpegs/h.jpg", FID),
    Kind { checksums: Checksums::Png, ..kind("label map", 4, "labels/a.png", SEGMENTATION) },
    Kind { checksums: Checksums::Png, ..kind("label map in training", 3, "folder/a.png", FOLDER) },
    text("panoptic JSON", 3, "panoptic.json", COCO),
    text("captions JSON", 3, "data/captions.json", TRAIN),
    text("captions JSON lines", 3, "captions.jsonl", "train --config c.toml --set data.captions=captions.jsonl"),
    kind("captions Parquet", 4, "captions.parquet", "train --config parquet.toml"),
    text("classes", 3, "classes.json", SEGMENTATION),
    Kind { checksums: Checksums::Matlab, ..kind("MATLAB", 5, "mat/a.mat", "prepare labels --mat mat --out out") },
    kind("weights", 4, "features/model.safetensors", FID),
    text("features' config", 3, "features/config.json", FID),
    kind("transformer's weights", 2, "model/transformer/diffusion_pytorch_model.safetensors", TRAIN),
    kind("model in one file", 3, "one.safetensors", ONE_FILE),
    kind("GGUF", 4, "one.gguf", GGUF),
    text("transformer's config", 4, "model/transformer/config.json", GENERATE),
    text("autoencoder's config", 4, "model/vae/config.json", GENERATE),
    text("text encoder's config", 4, "model/text_encoder/config.json", GENERATE),
    text("T5's config", 3, "t5/text_encoder_3/config.json", T5),
    text("scheduler's config", 3, "model/scheduler/scheduler_config.json", GENERATE),
    text("CLIP's config", 3, "clip/config.json", CLIP),
    text("CLIP's preprocessing", 2, "clip/preprocessor_config.json", CLIP),
    text("index of shards", 3, "model/text_encoder_2/model.safetensors.index.json", GENERATE),
    text("vocabulary", 3, "model/tokenizer/vocab.json", GENERATE),
    text("merges", 3, "model/tokenizer/merges.txt", GENERATE),
    text("tokenizer's config", 2, "model/tokenizer/tokenizer_config.json", GENERATE),
    text("tokenizer", 4, "t5/tokenizer_3/tokenizer.json", T5),
    kind("LoRA", 4, "lora.safetensors", GENERATE),
    kind("cache of latents", 3, "cache/latents-000000.safetensors", CACHED),
    kind("cache of text", 3, "cache/text-000000.safetensors", CACHED),
    text("state of a checkpoint", 4, "run1/checkpoints/step-000001/state.json", RESUME),
    kind("checkpoint", 3, "run1/checkpoints/step-000001/adapter.safetensors", RESUME),
    kind("optimizer", 3, "run1/checkpoints/step-000001/optimizer.safetensors", RESUME),
    text("metrics", 2, "run1/metrics.jsonl", RESUME),
    kind(
        "exported checkpoint",
        3,
        "run1/checkpoints/step-000001/adapter.safetensors",
        "export --checkpoint run1/checkpoints/step-000001 --format comfyui --out out",
    ),
    text(
        "phrases",
        4,
        "phrases.jsonl",
        "evaluate referring --model model --layer 0 --size 32 --images pictures --phrases phrases.jsonl",
    ),
    text(
        "data set",
        3,
        "set.toml",
        "evaluate segmentation --model model --layer 0 --size 32 --data-set set.toml --root .",
    ),
    text(
        "list of images",
        1,
        "list.txt",
        "evaluate segmentation --model model --layer 0 --size 32 --data-set set.toml --root .",
    ),
];

/// Numeric settings.
pub const NUMBERS: &[&str] = &[
    "seed",
    "model.expert_layer",
    "model.max_sequence_length",
    "lora.rank",
    "lora.alpha",
    "lora.layers",
    "data.caption_sentences",
    "data.resolution",
    "data.caption_dropout",
    "data.min_mask_area",
    "data.max_masks",
    "data.ignore",
    "data.shuffle_buffer",
    "data.workers",
    "data.max_broken",
    "data.retry_seconds",
    "optim.lr",
    "optim.lora_lr_scale",
    "optim.warmup_steps",
    "optim.warmup_factor",
    "optim.weight_decay",
    "optim.eps",
    "optim.clip_norm",
    "loss.flow_weight",
    "loss.align_weight",
    "loss.focal_weight",
    "loss.dice_weight",
    "loss.mask_max_sigma",
    "noise.logit_mean",
    "noise.logit_std",
    "train.batch",
    "train.accumulate",
    "train.max_nonfinite",
    "checkpoint.every",
    "checkpoint.keep",
];
