//! The words that keys of `[model]` and `[lora]` are chosen from, and the device that commands name.
use super::document::TomlValue;
use super::keys::choices;
use super::problems::nearest;
use super::setting::Setting;
use serde::Serialize;

choices! {
    /// Type of weights in memory.
    pub enum WeightType: Copy {
        /// IEEE single precision.
        F32 = "f32",
        /// bfloat16.
        Bf16 = "bf16",
        /// IEEE half precision.
        F16 = "f16",
    }
}

impl WeightType {
    /// Its type in candle.
    pub fn dtype(self) -> candle_core::DType {
        match self {
            Self::F32 => candle_core::DType::F32,
            Self::Bf16 => candle_core::DType::BF16,
            Self::F16 => candle_core::DType::F16,
        }
    }
}

choices! {
    /// How quantised weights are kept.
    pub enum Quantization: Copy {
        /// 8.5 bits a weight, in blocks of 32 (ggml's Q8_0).
        Q8_0 = "q8_0",
        /// 6.6 bits a weight, in blocks of 256 (ggml's Q6_K).
        Q6K = "q6k",
        /// 4.5 bits a weight, in blocks of 256 (ggml's Q4_K).
        Q4K = "q4_k",
        /// 8 bits a weight, floating point (E4M3), with a scale for every output.
        F8 = "f8",
    }
}

choices! {
    /// A text encoder.
    pub enum TextEncoderKind: Copy {
        /// CLIP ViT-L/14.
        ClipL = "clip_l",
        /// OpenCLIP ViT-bigG/14.
        ClipG = "clip_g",
        /// T5 v1.1 XXL, which takes 9.5 GB in bf16.
        T5 = "t5",
        /// Qwen3-4B, which takes 6.2 GB in bf16 as far as it is used.
        Qwen3 = "qwen3",
    }
}

choices! {
    /// Which blocks have adapters.
    pub enum LayerChoice {
        /// Every block.
        All = "all",
    } or {
        /// Only these blocks.
        List(Vec<usize>): "a list of block indices (from 0)"
    }
}

/// `auto` (CUDA if this build and machine have it, else the CPU), `cpu` or `cuda:N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first CUDA device if there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this index.
    Cuda(usize),
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let index = text.strip_prefix("cuda:").and_then(|index| index.parse().ok());
        match (text, index) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            (_, Some(index)) => Ok(Self::Cuda(index)),
            _ => Err(format!("expected {}", <Self as Setting>::expected())),
        }
    }
}

impl Serialize for DeviceChoice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Setting for DeviceChoice {
    fn expected() -> String {
        "\"auto\", \"cpu\" or \"cuda:N\"".into()
    }

    fn convert(value: &TomlValue) -> Option<Self> {
        String::convert(value)?.parse().ok()
    }

    fn nearest(text: &str) -> Option<&'static str> {
        nearest(text, ["auto", "cpu", "cuda:0"])
    }
}
