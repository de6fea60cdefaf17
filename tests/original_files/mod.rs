//! Models in one file, with the names of the original code: diffusers' conversions undone (`loaders/single_file_utils.py` of
//! diffusers 0.42.1, read backwards). tests/interop/onefile.py compares such files with diffusers' own reading of them.
#![allow(dead_code)]
use candle_core::Tensor;
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use seg4diff::model::weights::{read_all, write};
use std::collections::BTreeMap;
use std::path::Path;

pub type Tensors = BTreeMap<String, Tensor>;

/// The tensors of a part's folder.
pub fn part(folder: &Path) -> Tensors {
    let file = ["diffusion_pytorch_model.safetensors", "model.safetensors"].map(|name| folder.join(name));
    read_all(file.iter().find(|file| file.is_file()).expect("weights")).expect("tensors")
}

/// Writes tensors of several parts, each behind its prefix, as one file.
pub fn write_parts(file: &Path, parts: &[(&str, &Tensors)]) {
    let of_part = |(prefix, tensors): &(&str, &Tensors)| {
        let named = |(name, tensor): (&String, &Tensor)| (format!("{prefix}{name}"), tensor.clone());
        tensors.iter().map(named).collect::<Vec<_>>()
    };
    write(file, &parts.iter().flat_map(of_part).collect(), &BTreeMap::new()).expect("one file");
}

/// Writes tensors as GGUF, in blocks where their rows divide into such; returns what these stand for.
pub fn write_gguf(file: &Path, tensors: &Tensors) -> Tensors {
    let blocks = tensors.iter().enumerate().map(|(number, (name, tensor))| {
        let kind = match tensor.dims() {
            [_, inner] if inner.is_multiple_of(32) => [GgmlDType::Q8_0, GgmlDType::Q5_1, GgmlDType::Q4_0][number % 3],
            _ => GgmlDType::F32,
        };
        (name.as_str(), QTensor::quantize(tensor, kind).expect("blocks"))
    });
    let blocks: Vec<(&str, QTensor)> = blocks.collect();
    let named: Vec<(&str, &QTensor)> = blocks.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let architecture = Value::String("of no matter".into());
    let mut bytes = std::io::Cursor::new(vec![]);
    gguf_file::write(&mut bytes, &[("general.architecture", &architecture)], &named).expect("gguf");
    std::fs::write(file, bytes.into_inner()).expect("write");
    let values = |(name, blocks): &(&str, QTensor)| {
        (name.to_string(), blocks.dequantize(&candle_core::Device::Cpu).expect("values"))
    };
    blocks.iter().map(values).collect()
}

/// diffusers' tensors on their way to another name; what is left over at the end was forgotten.
struct Undo {
    left: Tensors,
    made: Tensors,
}

impl Undo {
    fn of(tensors: &Tensors) -> Self {
        Self { left: tensors.clone(), made: Tensors::new() }
    }

    fn take(&mut self, name: &str) -> Tensor {
        self.left.remove(name).unwrap_or_else(|| panic!("{name} is missing of {:?}", self.left.keys()))
    }

    fn has(&self, name: &str) -> bool {
        self.left.contains_key(name)
    }

    /// One tensor.
    fn rename(&mut self, from: &str, to: &str) {
        let tensor = self.take(from);
        self.made.insert(to.into(), tensor);
    }

    /// Weight and bias of the modules, one after the other.
    fn join(&mut self, from: &[&str], to: &str) {
        for parameter in ["weight", "bias"] {
            if !self.has(&format!("{}.{parameter}", from[0])) {
                continue;
            }
            let parts: Vec<Tensor> = from.iter().map(|name| self.take(&format!("{name}.{parameter}"))).collect();
            self.made.insert(format!("{to}.{parameter}"), Tensor::cat(&parts, 0).expect("rows"));
        }
    }

    /// Weight and bias with scale and shift the other way round.
    fn swap(&mut self, from: &str, to: &str) {
        for parameter in ["weight", "bias"] {
            if !self.has(&format!("{from}.{parameter}")) {
                continue;
            }
            let halves = self.take(&format!("{from}.{parameter}")).chunk(2, 0).expect("halves");
            let swapped = Tensor::cat(&[&halves[1], &halves[0]], 0).expect("rows");
            self.made.insert(format!("{to}.{parameter}"), swapped);
        }
    }

    /// What FLUX.1 and FLUX.2 have in common, and these further layers of double-stream and of single-stream blocks.
    fn flux(&mut self, tensors: &Tensors, double: &[(&str, &str)], single: &[(&[&str], &str)]) {
        self.join(&["context_embedder"], "txt_in");
        self.join(&["x_embedder"], "img_in");
        self.join(&["proj_out"], "final_layer.linear");
        self.swap("norm_out.linear", "final_layer.adaLN_modulation.1");
        for i in 0..blocks(tensors, "transformer_blocks") {
            let d = |name: &str| format!("transformer_blocks.{i}.{name}");
            let o = |name: &str| format!("double_blocks.{i}.{name}");
            self.join(&[&d("attn.to_q"), &d("attn.to_k"), &d("attn.to_v")], &o("img_attn.qkv"));
            self.join(&[&d("attn.add_q_proj"), &d("attn.add_k_proj"), &d("attn.add_v_proj")], &o("txt_attn.qkv"));
            for (from, to) in [
                ("attn.norm_q", "img_attn.norm.query_norm"),
                ("attn.norm_k", "img_attn.norm.key_norm"),
                ("attn.norm_added_q", "txt_attn.norm.query_norm"),
                ("attn.norm_added_k", "txt_attn.norm.key_norm"),
            ] {
                self.rename(&d(&format!("{from}.weight")), &o(&format!("{to}.scale")));
            }
            for (from, to) in
                [("attn.to_out.0", "img_attn.proj"), ("attn.to_add_out", "txt_attn.proj")].iter().chain(double)
            {
                self.join(&[&d(from)], &o(to));
            }
        }
        for i in 0..blocks(tensors, "single_transformer_blocks") {
            let d = |name: &str| format!("single_transformer_blocks.{i}.{name}");
            let o = |name: &str| format!("single_blocks.{i}.{name}");
            self.rename(&d("attn.norm_q.weight"), &o("norm.query_norm.scale"));
            self.rename(&d("attn.norm_k.weight"), &o("norm.key_norm.scale"));
            for (from, to) in single {
                let from: Vec<String> = from.iter().map(|name| d(name)).collect();
                self.join(&from.iter().map(String::as_str).collect::<Vec<_>>(), &o(to));
            }
        }
    }

    fn finish(self) -> Tensors {
        assert!(self.left.is_empty(), "{:?}", self.left.keys());
        self.made
    }
}

fn blocks(tensors: &Tensors, list: &str) -> usize {
    let number = |name: &String| name.strip_prefix(list)?.split('.').nth(1)?.parse::<usize>().ok();
    tensors.keys().filter_map(number).max().map_or(0, |last| last + 1)
}

/// `convert_sd3_transformer_checkpoint_to_diffusers`, undone.
pub fn sd3_transformer(tensors: &Tensors) -> Tensors {
    let mut undo = Undo::of(tensors);
    undo.rename("pos_embed.pos_embed", "pos_embed");
    undo.join(&["pos_embed.proj"], "x_embedder.proj");
    undo.join(&["context_embedder"], "context_embedder");
    for (from, to) in [("timestep_embedder", "t_embedder"), ("text_embedder", "y_embedder")] {
        undo.join(&[&format!("time_text_embed.{from}.linear_1")], &format!("{to}.mlp.0"));
        undo.join(&[&format!("time_text_embed.{from}.linear_2")], &format!("{to}.mlp.2"));
    }
    let count = blocks(tensors, "transformer_blocks");
    for i in 0..count {
        let d = |name: &str| format!("transformer_blocks.{i}.{name}");
        let x = |name: &str| format!("joint_blocks.{i}.x_block.{name}");
        let c = |name: &str| format!("joint_blocks.{i}.context_block.{name}");
        undo.join(&[&d("attn.to_q"), &d("attn.to_k"), &d("attn.to_v")], &x("attn.qkv"));
        undo.join(&[&d("attn.add_q_proj"), &d("attn.add_k_proj"), &d("attn.add_v_proj")], &c("attn.qkv"));
        for (from, to) in [
            ("attn.norm_q", x("attn.ln_q")),
            ("attn.norm_k", x("attn.ln_k")),
            ("attn.norm_added_q", c("attn.ln_q")),
            ("attn.norm_added_k", c("attn.ln_k")),
            ("attn2.norm_q", x("attn2.ln_q")),
            ("attn2.norm_k", x("attn2.ln_k")),
            ("attn.to_out.0", x("attn.proj")),
            ("attn.to_add_out", c("attn.proj")),
            ("attn2.to_out.0", x("attn2.proj")),
            ("norm1.linear", x("adaLN_modulation.1")),
            ("ff.net.0.proj", x("mlp.fc1")),
            ("ff.net.2", x("mlp.fc2")),
            ("ff_context.net.0.proj", c("mlp.fc1")),
            ("ff_context.net.2", c("mlp.fc2")),
        ] {
            undo.join(&[&d(from)], &to);
        }
        undo.join(&[&d("attn2.to_q"), &d("attn2.to_k"), &d("attn2.to_v")], &x("attn2.qkv"));
        match i + 1 == count {
            true => undo.swap(&d("norm1_context.linear"), &c("adaLN_modulation.1")),
            false => undo.join(&[&d("norm1_context.linear")], &c("adaLN_modulation.1")),
        }
    }
    undo.join(&["proj_out"], "final_layer.linear");
    undo.swap("norm_out.linear", "final_layer.adaLN_modulation.1");
    undo.finish()
}

/// `convert_flux_transformer_checkpoint_to_diffusers`, undone.
pub fn flux_transformer(tensors: &Tensors) -> Tensors {
    let mut undo = Undo::of(tensors);
    for (from, to) in
        [("timestep_embedder", "time_in"), ("text_embedder", "vector_in"), ("guidance_embedder", "guidance_in")]
    {
        undo.join(&[&format!("time_text_embed.{from}.linear_1")], &format!("{to}.in_layer"));
        undo.join(&[&format!("time_text_embed.{from}.linear_2")], &format!("{to}.out_layer"));
    }
    let double = [
        ("norm1.linear", "img_mod.lin"),
        ("norm1_context.linear", "txt_mod.lin"),
        ("ff.net.0.proj", "img_mlp.0"),
        ("ff.net.2", "img_mlp.2"),
        ("ff_context.net.0.proj", "txt_mlp.0"),
        ("ff_context.net.2", "txt_mlp.2"),
    ];
    let single: [(&[&str], &str); 3] = [
        (&["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"], "linear1"),
        (&["norm.linear"], "modulation.lin"),
        (&["proj_out"], "linear2"),
    ];
    undo.flux(tensors, &double, &single);
    undo.finish()
}

/// `convert_flux2_transformer_checkpoint_to_diffusers`, undone.
pub fn flux2_transformer(tensors: &Tensors) -> Tensors {
    let mut undo = Undo::of(tensors);
    for (from, to) in [
        ("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer"),
        ("time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer"),
        ("double_stream_modulation_img.linear", "double_stream_modulation_img.lin"),
        ("double_stream_modulation_txt.linear", "double_stream_modulation_txt.lin"),
        ("single_stream_modulation.linear", "single_stream_modulation.lin"),
    ] {
        undo.join(&[from], to);
    }
    let double = [
        ("ff.linear_in", "img_mlp.0"),
        ("ff.linear_out", "img_mlp.2"),
        ("ff_context.linear_in", "txt_mlp.0"),
        ("ff_context.linear_out", "txt_mlp.2"),
    ];
    let single: [(&[&str], &str); 2] = [(&["attn.to_qkv_mlp_proj"], "linear1"), (&["attn.to_out"], "linear2")];
    undo.flux(tensors, &double, &single);
    undo.finish()
}

/// `convert_ldm_vae_checkpoint`, undone: the middle's attention is stored as 1×1 convolutions.
pub fn vae(tensors: &Tensors) -> Tensors {
    let levels = blocks(tensors, "encoder.down_blocks");
    let resnet = |rest: &str| rest.replace("conv_shortcut", "nin_shortcut");
    let made = tensors.iter().map(|(name, tensor)| {
        let (half, rest) = name.split_once('.').unwrap_or((name, ""));
        let parts: Vec<&str> = rest.splitn(5, '.').collect();
        let (mut to, mut tensor) = (name.clone(), tensor.clone());
        match parts[..] {
            ["down_blocks", i, "resnets", j, rest] => to = format!("{half}.down.{i}.block.{j}.{}", resnet(rest)),
            ["down_blocks", i, "downsamplers", "0", rest] => to = format!("{half}.down.{i}.downsample.{rest}"),
            ["up_blocks", i, "resnets", j, rest] => {
                let level = levels - 1 - i.parse::<usize>().expect("a number");
                to = format!("{half}.up.{level}.block.{j}.{}", resnet(rest));
            }
            ["up_blocks", i, "upsamplers", "0", rest] => {
                to = format!("{half}.up.{}.upsample.{rest}", levels - 1 - i.parse::<usize>().expect("a number"));
            }
            ["mid_block", "resnets", j, ..] => {
                let rest = rest.splitn(4, '.').nth(3).expect("a name");
                to = format!("{half}.mid.block_{}.{}", j.parse::<usize>().expect("a number") + 1, resnet(rest));
            }
            ["mid_block", "attentions", "0", ..] => {
                let rest = rest.splitn(4, '.').nth(3).expect("a name");
                let rest =
                    [("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")]
                        .into_iter()
                        .fold(rest.to_string(), |rest, (from, to)| rest.replace(from, to));
                to = format!("{half}.mid.attn_1.{rest}");
                if tensor.rank() == 2 {
                    tensor = tensor.unsqueeze(2).and_then(|tensor| tensor.unsqueeze(3)).expect("a convolution");
                }
            }
            _ => to = to.replace("conv_norm_out", "norm_out"),
        }
        (to, tensor)
    });
    made.collect()
}
