#!/usr/bin/env python3
"""Models in one file against diffusers' own reading of them, live.

  cargo build --release
  tests/interop/onefile.py [--sd3 ../shared/parity/tiny_sd3.py] [--flux ../shared/parity/tiny_flux.py]
                           [--binary target/release/seg4diff] [--seed N] [--keep DIR]

For SD3, SD3.5-medium, SD3.5-large, FLUX.1-dev and -schnell: a random pipeline, its conversion undone, and then
  converters  diffusers' converters make the folder's tensors of the file again: differing tensors, 0
  text names  the same of diffusers' names of the text encoders
  picture     `generate` on the file and the pipeline that `from_single_file` makes of it: mean difference of 255, < 0.05
  folder      `generate` on the file and on the folder: differing bytes, 0
  scaled fp8  `generate` on a file with e4m3fn weights and ComfyUI's scales, and on one with their products in f32: differing
              bytes, 0
Prints a line a figure; exit status 1 if one is out of bounds.
Needs torch, diffusers, transformers, pillow (seen: torch 2.15, diffusers 0.42.1, transformers 5.24).
"""
import argparse, inspect, json, logging, os, sys, tempfile
import diffusers, numpy as np, torch, transformers
import diffusers.loaders.single_file_model as single_file_model
import diffusers.loaders.single_file_utils as utils
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import load_file, save_file
import compare
from compare import PROMPTS, ROOT, report, run

logging.disable(logging.WARNING)
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()
SIZE, STEPS = 128, 6
CONVERT_FLUX = inspect.getsource(utils.convert_flux_transformer_checkpoint_to_diffusers)
TRANSFORMER, VAE = "model.diffusion_model.", "first_stage_model."


def joined(t, names, parameter):
    return torch.cat([t.pop(f"{name}.{parameter}") for name in names])


def sd3(t):
    """`convert_sd3_transformer_checkpoint_to_diffusers`, undone."""
    t, o = dict(t), {}
    layers = 1 + max(int(k.split(".")[1]) for k in t if k.startswith("transformer_blocks."))
    swap = lambda x: torch.cat(x.chunk(2)[::-1])
    o["pos_embed"] = t.pop("pos_embed.pos_embed")
    for p in ("weight", "bias"):
        o[f"x_embedder.proj.{p}"] = t.pop(f"pos_embed.proj.{p}")
        o[f"context_embedder.{p}"] = t.pop(f"context_embedder.{p}")
        for d, s in (("timestep", "t"), ("text", "y")):
            o[f"{s}_embedder.mlp.0.{p}"] = t.pop(f"time_text_embed.{d}_embedder.linear_1.{p}")
            o[f"{s}_embedder.mlp.2.{p}"] = t.pop(f"time_text_embed.{d}_embedder.linear_2.{p}")
        o[f"final_layer.linear.{p}"] = t.pop(f"proj_out.{p}")
        o[f"final_layer.adaLN_modulation.1.{p}"] = swap(t.pop(f"norm_out.linear.{p}"))
        for i in range(layers):
            d, x, c = f"transformer_blocks.{i}", f"joint_blocks.{i}.x_block", f"joint_blocks.{i}.context_block"
            o[f"{x}.attn.qkv.{p}"] = joined(t, [f"{d}.attn.to_{n}" for n in "qkv"], p)
            o[f"{c}.attn.qkv.{p}"] = joined(t, [f"{d}.attn.add_{n}_proj" for n in "qkv"], p)
            if f"{d}.attn2.to_q.{p}" in t:
                o[f"{x}.attn2.qkv.{p}"] = joined(t, [f"{d}.attn2.to_{n}" for n in "qkv"], p)
            norm = t.pop(f"{d}.norm1_context.linear.{p}")
            o[f"{c}.adaLN_modulation.1.{p}"] = swap(norm) if i == layers - 1 else norm
            for a, b in (("attn.to_out.0", f"{x}.attn.proj"), ("attn2.to_out.0", f"{x}.attn2.proj"), ("attn.to_add_out", f"{c}.attn.proj"),
                         ("norm1.linear", f"{x}.adaLN_modulation.1"), ("ff.net.0.proj", f"{x}.mlp.fc1"), ("ff.net.2", f"{x}.mlp.fc2"),
                         ("ff_context.net.0.proj", f"{c}.mlp.fc1"), ("ff_context.net.2", f"{c}.mlp.fc2"),
                         ("attn.norm_q", f"{x}.attn.ln_q"), ("attn.norm_k", f"{x}.attn.ln_k"), ("attn.norm_added_q", f"{c}.attn.ln_q"),
                         ("attn.norm_added_k", f"{c}.attn.ln_k"), ("attn2.norm_q", f"{x}.attn2.ln_q"), ("attn2.norm_k", f"{x}.attn2.ln_k")):
                if f"{d}.{a}.{p}" in t: o[f"{b}.{p}"] = t.pop(f"{d}.{a}.{p}")
    assert not t, t.keys()
    return o


def flux(t):
    """`convert_flux_transformer_checkpoint_to_diffusers`, undone."""
    t, o = dict(t), {}
    count = lambda prefix: 1 + max(int(k[len(prefix):].split(".")[0]) for k in t if k.startswith(prefix))
    double, single = count("transformer_blocks."), count("single_transformer_blocks.")
    for p in ("weight", "bias"):
        for d, s in (("timestep", "time"), ("text", "vector"), ("guidance", "guidance")):
            if f"time_text_embed.{d}_embedder.linear_1.{p}" in t:
                o[f"{s}_in.in_layer.{p}"] = t.pop(f"time_text_embed.{d}_embedder.linear_1.{p}")
                o[f"{s}_in.out_layer.{p}"] = t.pop(f"time_text_embed.{d}_embedder.linear_2.{p}")
        for d, s in (("context_embedder", "txt_in"), ("x_embedder", "img_in"), ("proj_out", "final_layer.linear")):
            o[f"{s}.{p}"] = t.pop(f"{d}.{p}")
        o[f"final_layer.adaLN_modulation.1.{p}"] = torch.cat(t.pop(f"norm_out.linear.{p}").chunk(2)[::-1])
        for i in range(double):
            d, s = f"transformer_blocks.{i}", f"double_blocks.{i}"
            o[f"{s}.img_attn.qkv.{p}"] = joined(t, [f"{d}.attn.to_{n}" for n in "qkv"], p)
            o[f"{s}.txt_attn.qkv.{p}"] = joined(t, [f"{d}.attn.add_{n}_proj" for n in "qkv"], p)
            for a, b in (("norm1.linear", "img_mod.lin"), ("norm1_context.linear", "txt_mod.lin"), ("ff.net.0.proj", "img_mlp.0"),
                         ("ff.net.2", "img_mlp.2"), ("ff_context.net.0.proj", "txt_mlp.0"), ("ff_context.net.2", "txt_mlp.2"),
                         ("attn.to_out.0", "img_attn.proj"), ("attn.to_add_out", "txt_attn.proj")):
                o[f"{s}.{b}.{p}"] = t.pop(f"{d}.{a}.{p}")
        for i in range(single):
            d, s = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
            o[f"{s}.linear1.{p}"] = joined(t, [*(f"{d}.attn.to_{n}" for n in "qkv"), f"{d}.proj_mlp"], p)
            o[f"{s}.modulation.lin.{p}"] = t.pop(f"{d}.norm.linear.{p}")
            o[f"{s}.linear2.{p}"] = t.pop(f"{d}.proj_out.{p}")
    for name in list(t):
        i = name.split(".")[1]
        s = f"single_blocks.{i}." if name.startswith("single") else f"double_blocks.{i}.{'txt' if 'added' in name else 'img'}_attn."
        o[f"{s}norm.{'query' if name.endswith('q.weight') else 'key'}_norm.scale"] = t.pop(name)
    return o


def vae(t):
    """`convert_ldm_vae_checkpoint`, undone; the attention as 1×1 convolutions."""
    levels = 1 + max(int(k.split(".")[2]) for k in t if k.startswith("encoder.down_blocks."))
    o = {}
    for name, x in t.items():
        parts = name.split(".")
        half, rest = parts[0], ".".join(parts[4:]).replace("conv_shortcut", "nin_shortcut")
        match parts[1:4]:
            case ["down_blocks", i, "resnets"]: key = f"{half}.down.{i}.block.{rest}"
            case ["down_blocks", i, "downsamplers"]: key = f"{half}.down.{i}.downsample.{rest[2:]}"
            case ["up_blocks", i, "resnets"]: key = f"{half}.up.{levels - 1 - int(i)}.block.{rest}"
            case ["up_blocks", i, "upsamplers"]: key = f"{half}.up.{levels - 1 - int(i)}.upsample.{rest[2:]}"
            case ["mid_block", "resnets", i]: key = f"{half}.mid.block_{int(i) + 1}.{rest}"
            case ["mid_block", "attentions", _]:
                for a, b in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
                    rest = rest.replace(a, b)
                key, x = f"{half}.mid.attn_1.{rest}", x[:, :, None, None] if x.ndim == 2 else x
            case _: key = name.replace("conv_norm_out", "norm_out")
        o[key] = x.contiguous()
    return o


def differing(found, wanted):
    return len(found.keys() ^ wanted.keys()) + sum(not torch.equal(found[k], wanted[k]) for k in found.keys() & wanted.keys())


def converters(folder, transformer, encoder_decoder, is_flux):
    """Tensors that diffusers' converters do not make of the file as the folder has them."""
    wanted = lambda part: load_file(f"{folder}/{part}/diffusion_pytorch_model.safetensors")
    convert = utils.convert_flux_transformer_checkpoint_to_diffusers if is_flux else utils.convert_sd3_transformer_checkpoint_to_diffusers
    made = convert({TRANSFORMER + k: v for k, v in transformer.items()})
    config = json.load(open(f"{folder}/vae/config.json"))
    vae_made = utils.convert_ldm_vae_checkpoint({VAE + k: v for k, v in encoder_decoder.items()}, config)
    return differing(made, wanted("transformer")) + differing(vae_made, wanted("vae"))


def drawn(a, work, name, model, *more):
    prompts = [x for prompt in PROMPTS for x in ("--prompt", prompt)]
    run(a.binary, "generate", "--model", model, *prompts, "--out", f"{work}/{name}", "--size", SIZE, "--steps", STEPS, "--guidance",
        4.0, "--latents", f"{work}/latents.safetensors", "--device", "cpu", "--max-sequence-length", 64, *more)
    read = lambda i: Image.open(f"{work}/{name}/{i:06}.png").convert("RGB")
    return np.stack([np.asarray(read(i), dtype=np.float64) for i in range(len(PROMPTS))])


def reference(pipe, latents, is_flux):
    pictures = []
    for i, prompt in enumerate(PROMPTS):
        noise = latents[i:i + 1]
        if is_flux: noise = FluxPipeline._pack_latents(noise, 1, 16, SIZE // 8, SIZE // 8)
        pictures.append(pipe(prompt, height=SIZE, width=SIZE, num_inference_steps=STEPS, guidance_scale=4.0, latents=noise,
                             max_sequence_length=64, output_type="np").images[0])
    return (np.stack(pictures) * 255).round()


def compare_variant(a, variant, work):
    is_flux, folder = variant in ("dev", "schnell"), f"{work}/model"
    run(sys.executable, a.flux if is_flux else a.sd3, "--out", folder, "--variant", variant, "--seed", a.seed, *([] if is_flux else ["--t5"]))
    weights = lambda part, stem: load_file(f"{folder}/{part}/{stem}.safetensors")
    transformer = (flux if is_flux else sd3)(weights("transformer", "diffusion_pytorch_model"))
    encoder_decoder = vae(weights("vae", "diffusion_pytorch_model"))
    texts = {"clip_l": "text_encoder", **({"t5xxl": "text_encoder_2"} if is_flux else {"clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"})}
    if not is_flux:
        # The file has no projection of CLIP-L, for which diffusers takes the identity.
        clip = weights("text_encoder", "model")
        clip["text_projection.weight"] = torch.eye(len(clip["text_projection.weight"]))
        save_file(clip, f"{folder}/text_encoder/model.safetensors", {"format": "pt"})
    else:
        width = transformer["img_in.weight"].shape[0]
        assert "inner_dim = 3072" in CONVERT_FLUX
        exec(CONVERT_FLUX.replace("inner_dim = 3072", f"inner_dim = {width}"), utils.__dict__)
        known = single_file_model.SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
        known["checkpoint_mapping_fn"] = utils.convert_flux_transformer_checkpoint_to_diffusers
    report(variant, "converters", n := converters(folder, transformer, encoder_decoder, is_flux), n == 0, "0")

    def one_file(name, transformer):
        tensors = {TRANSFORMER + k: v for k, v in transformer.items()} | {VAE + k: v for k, v in encoder_decoder.items()}
        for key, part in texts.items():
            for name_, x in weights(part, "model").items():
                # transformers 5 writes CLIPTextModel without the prefix that released files have.
                name_ = name_ if key == "t5xxl" or name_.startswith("text_") else f"text_model.{name_}"
                if key != "clip_l" or not name_.startswith("text_projection"): tensors[f"text_encoders.{key}.transformer.{name_}"] = x
        save_file({k: v.contiguous() for k, v in tensors.items()}, f"{work}/{name}.safetensors")
        return f"{work}/{name}.safetensors"

    latents = torch.randn(len(PROMPTS), 16, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(a.seed))
    save_file({"latents": latents}, f"{work}/latents.safetensors")
    encoders = ["--text-encoders", "clip_l,t5" if is_flux else "clip_l,clip_g,t5"]
    config = ["--model-file", f"config={folder}"]
    whole = one_file("whole", transformer)
    ours, ours_of_folder = drawn(a, work, "file", whole, *config, *encoders), drawn(a, work, "folder", folder, *encoders)
    tensors = load_file(whole)
    texts_differ = 0
    for key, part in texts.items():
        found = utils.convert_ldm_clip_checkpoint(dict(tensors), f"text_encoders.{key}.transformer.")
        named = lambda name: name if key == "t5xxl" or name.startswith("text_") else f"text_model.{name}"
        wanted = {named(k): v for k, v in weights(part, "model").items() if not (key == "clip_l" and k.startswith("text_projection"))}
        texts_differ += differing(found, wanted)
    report(variant, "text names", texts_differ, texts_differ == 0, "0")
    report(variant, "folder", n := int((ours != ours_of_folder).sum()), n == 0, "0")
    pipeline = FluxPipeline if is_flux else StableDiffusion3Pipeline
    # Text encoders from the folder: with transformers 5 diffusers leaves buffers of those from a file without values.
    whole_pipe = pipeline.from_pretrained(folder, torch_dtype=torch.float32)
    texts_made = {part: getattr(whole_pipe, part) for part in texts.values()}
    pipe = pipeline.from_single_file(whole, config=folder, torch_dtype=torch.float32, local_files_only=True, **texts_made)
    pipe.set_progress_bar_config(disable=True)
    report(variant, "picture", n := np.abs(ours - reference(pipe, latents, is_flux)).mean(), n < 0.05, "< 0.05")

    scaled, products = {}, {}
    for name, x in transformer.items():
        module = name.removesuffix(".weight")
        if x.ndim == 2 and name != module:
            scale = x.abs().max() / 448
            scaled[name], scaled[f"{module}.scale_weight"] = (x / scale).to(torch.float8_e4m3fn), scale
            products[name] = scaled[name].float() * scale
        else:
            scaled[name] = products[name] = x
    scaled["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    eight = drawn(a, work, "eight", one_file("scaled", scaled), *config, *encoders)
    as_products = drawn(a, work, "products", one_file("products", products), *config, *encoders)
    report(variant, "scaled fp8", n := int((eight != as_products).sum()), n == 0 and (eight != ours).any(), "0")


ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--sd3", default=f"{ROOT}/../shared/parity/tiny_sd3.py")
ap.add_argument("--flux", default=f"{ROOT}/../shared/parity/tiny_flux.py")
ap.add_argument("--binary", default=f"{ROOT}/target/release/seg4diff")
ap.add_argument("--variant", action="append")
ap.add_argument("--seed", type=int, default=0)
ap.add_argument("--keep")
a = ap.parse_args()
for variant in a.variant or ["sd3", "sd3.5-medium", "sd3.5-large", "dev", "schnell"]:
    if a.keep:
        os.makedirs(f"{a.keep}/{variant}", exist_ok=True)
        compare_variant(a, variant, f"{a.keep}/{variant}")
    else:
        with tempfile.TemporaryDirectory() as work: compare_variant(a, variant, work)
sys.exit(f"out of bounds: {', '.join(compare.failed)}" if compare.failed else 0)
