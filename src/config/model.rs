//! The sections `[model]` and `[lora]`: the frozen model, and the adapter that is trained on it.
use super::keys::keys;
use super::model_choices::{LayerChoice, Quantization, TextEncoderKind, WeightType};
use super::problems::nearest;
use super::rule::{optional, required, usual};
use super::setting::{Check, check, distinct, if_given, is_distinct, is_not_empty, not_empty, positive, within};
use crate::model::families::known::{DEFAULT_TARGETS, adapter_targets};
use crate::model::text::tokenizer::TRAINING_SEQUENCE_LENGTH;
use crate::model::weights::hub::HubName;
use crate::model::weights::part::Part;
use std::path::{Path, PathBuf};

keys! {
    /// The frozen base model.
    [model] pub struct ModelConfig(reader) {
        /// A folder in the diffusers layout; `hf:ORG/NAME` or `hf:ORG/NAME@REVISION` of the Hugging Face hub (Stability AI's
        /// need an accepted licence); or one file, `.safetensors` or `.gguf`, with the names of the original code, on the hub
        /// `hf:ORG/NAME/FILE`.
        path: String = required("\"models/stable-diffusion-3-medium-diffusers\""), model_path();
        /// Which files of weights are taken where there are several: `"fp16"` for `*.fp16.safetensors`, as diffusers'
        /// `variant`. Parts that lack it have their plain files.
        variant: Option<String> = optional("\"fp16\""), if_given(not_empty());
        /// Type of the frozen weights in memory. What is trained is always f32.
        dtype: WeightType = usual(WeightType::Bf16);
        /// Quantises the frozen weights of the blocks and of the text encoders, which takes a half to a quarter of bf16's
        /// memory; a layer's are written out when it is computed. The other weights stay as `model.dtype`. Without
        /// it, layers of a GGUF file stay in its blocks.
        quantize: Option<Quantization> = optional("\"q8_0\"");
        /// Text encoders that prompts go through; FLUX.1 needs `["clip_l", "t5"]`, FLUX.2-klein `["qwen3"]`.
        text_encoders: Vec<TextEncoderKind> = usual(vec![TextEncoderKind::ClipL, TextEncoderKind::ClipG]), distinct();
        /// Tokens that the sequence of T5 or Qwen3 is padded or cut to; in Stable Diffusion 3 T5's follow CLIP's tokens, and
        /// are zeros without T5. The default is that of diffusers' training script for it; those for FLUX have 512.
        max_sequence_length: usize = usual(TRAINING_SEQUENCE_LENGTH), within(1, 512);
        /// The semantic grounding experts: blocks, from 0, whose attention, averaged, learns the masks
        /// (`ATTENTION_LAYERS`). FLUX's are numbered through, double-stream blocks first.
        expert_layers: Vec<usize> = usual(vec![9]).of_blocks(), distinct();
        /// Whether all images have one prompt, whose token embeddings are trained from the empty one's, in place of
        /// captions (`USE_LEARNABLE_TOKENS`). It is written as `prompt.safetensors` beside the adapter.
        learnable_prompt: bool = usual(false);
    } with {
        /// Parts of the model that lie elsewhere.
        files: PartPaths = PartPaths::read(reader);
    }
}

keys! {
    /// Parts of the base model that are not in its file or folder. A path is a file, with the names of the original code, of
    /// diffusers or of transformers, on the hub `hf:ORG/NAME/FILE`, or a part's folder in the diffusers layout.
    [model.files] pub struct PartPaths(reader) {
        /// Where the tokenizers of a model in one file are, and what the shapes of its tensors do not show of its sizes: a
        /// folder in the diffusers layout or `hf:ORG/NAME`, of which only small files are read. Without it, the folder that
        /// the file lies in, where that is such, or else the repository of the released model.
        config: Option<String> = optional("\"hf:stabilityai/stable-diffusion-3-medium-diffusers\""), if_given(model_path());
        /// The autoencoder.
        vae: Option<PathBuf> = optional("\"models/ae.safetensors\""), if_given(part_path());
        /// CLIP ViT-L/14.
        clip_l: Option<PathBuf> = optional("\"models/clip_l.safetensors\""), if_given(part_path());
        /// OpenCLIP ViT-bigG/14.
        clip_g: Option<PathBuf> = optional("\"models/clip_g.safetensors\""), if_given(part_path());
        /// T5.
        t5: Option<PathBuf> = optional("\"models/t5xxl_fp16.safetensors\""), if_given(part_path());
        /// Qwen3.
        qwen3: Option<PathBuf> = optional("\"models/qwen_3_4b.safetensors\""), if_given(part_path());
    }
}

impl Default for PartPaths {
    /// None.
    fn default() -> Self {
        Self { config: None, vae: None, clip_l: None, clip_g: None, t5: None, qwen3: None }
    }
}

impl PartPaths {
    /// The parts that are named, with their paths.
    pub fn parts(&self) -> impl Iterator<Item = (Part, &Path)> {
        let named = [
            (Part::Vae, &self.vae),
            (Part::Text(TextEncoderKind::ClipL), &self.clip_l),
            (Part::Text(TextEncoderKind::ClipG), &self.clip_g),
            (Part::Text(TextEncoderKind::T5), &self.t5),
            (Part::Text(TextEncoderKind::Qwen3), &self.qwen3),
        ];
        named.into_iter().filter_map(|(part, path)| Some((part, path.as_deref()?)))
    }

    /// Where a part lies, if it is named.
    pub fn of(&self, part: Part) -> Option<&Path> {
        self.parts().find(|(named, _)| *named == part).map(|(_, path)| path)
    }

    /// What `--model-file` takes, `KEY=PATH` each: what [`Self::of_arguments`] makes these paths of.
    pub fn arguments(&self) -> Vec<String> {
        let parts = self.parts().map(|(part, path)| format!("{}={}", part.key(), path.display()));
        parts.chain(self.config.as_ref().map(|config| format!("config={config}"))).collect()
    }

    /// These paths as `KEY=PATH` names them.
    ///
    /// # Errors
    /// A key is none.
    pub fn of_arguments(arguments: &[String]) -> Result<Self, String> {
        let mut paths = Self::default();
        for argument in arguments {
            let (key, path) = argument.split_once('=').filter(|(_, path)| !path.is_empty()).unwrap_or_default();
            match key {
                "config" => paths.config = Some(path.into()),
                "vae" => paths.vae = Some(path.into()),
                "clip_l" => paths.clip_l = Some(path.into()),
                "clip_g" => paths.clip_g = Some(path.into()),
                "t5" => paths.t5 = Some(path.into()),
                "qwen3" => paths.qwen3 = Some(path.into()),
                _ => {
                    let keys = "vae, clip_l, clip_g, t5, qwen3 or config";
                    return Err(format!("{argument:?}: expected {keys}, = and a path"));
                }
            }
        }
        Ok(paths)
    }
}

impl ModelConfig {
    /// Whether the base model, or a part of it, is on the hub: `hf:org/name`.
    pub fn is_on_hub(&self) -> bool {
        self.path.starts_with("hf:") || self.files.parts().any(|(_, path)| path.to_string_lossy().starts_with("hf:"))
    }

    /// The highest expert: the mask loss reaches no further.
    pub fn last_expert(&self) -> usize {
        self.expert_layers.last().copied().unwrap_or(0)
    }
}

/// Blocks as people say them: `block 9`, or `blocks 7, 8, 9`.
pub fn named_blocks(layers: &[usize]) -> String {
    let numbers: Vec<String> = layers.iter().map(usize::to_string).collect();
    format!("block{} {}", if numbers.len() == 1 { "" } else { "s" }, numbers.join(", "))
}

/// A path, or `hf:org/name` with or without `@revision`, or a file in such.
fn model_path() -> Check<String> {
    check("not empty", |path: &String| match path.strip_prefix("hf:") {
        None => is_not_empty(path),
        Some(name) if HubName::parse(name).is_some() => Ok(()),
        Some(_) => {
            Err(format!("expected hf:ORG/NAME or hf:ORG/NAME@REVISION, for one file with /FILE, found {path:?}"))
        }
    })
}

/// A path, or a file on the hub.
fn part_path() -> Check<PathBuf> {
    check("not empty", |path: &PathBuf| match path.to_str().and_then(|path| path.strip_prefix("hf:")) {
        None => is_not_empty(path),
        Some(name) if HubName::parse(name).is_some_and(|name| name.file.is_some()) => Ok(()),
        Some(_) => Err(format!("expected hf:ORG/NAME/FILE or hf:ORG/NAME@REVISION/FILE, found {:?}", path.display())),
    })
}

keys! {
    /// The LoRA adapter that is trained.
    [lora] pub struct LoraConfig(reader) {
        /// Rank of the adapter's two matrices.
        rank: usize = usual(16), within(1, 4096);
        /// The adapter's output is multiplied by alpha/rank.
        alpha: f64 = usual(16.0), positive();
        /// Modules of a block that have an adapter, by their names in diffusers: `seg4diff config lora.targets` lists them.
        targets: Vec<String> = usual(DEFAULT_TARGETS.map(String::from).to_vec()), lora_targets();
        /// Blocks that have adapters.
        layers: LayerChoice = usual(LayerChoice::All), lora_layers();
        /// Adapter that training starts from, of the same targets, layers, rank and alpha: a file or folder in any format
        /// that is read. Without it training starts from a fresh one.
        init: Option<PathBuf> = optional("\"runs/first/lora.safetensors\"");
    }
}

fn lora_targets() -> Check<Vec<String>> {
    let names: Vec<&str> = adapter_targets().into_iter().collect();
    check(&format!("at least one, none twice, of {}", names.join(", ")), |targets: &Vec<String>| {
        match targets.iter().find(|target| !adapter_targets().contains(target.as_str())) {
            Some(target) => Err(format!(
                "{target:?} is not a module of a block; the nearest is {:?}",
                nearest(target, adapter_targets()).unwrap_or_default()
            )),
            None => is_distinct(targets),
        }
    })
}

fn lora_layers() -> Check<LayerChoice> {
    check("none twice", |layers| match layers {
        LayerChoice::All => Ok(()),
        LayerChoice::List(list) => is_distinct(list),
    })
}
