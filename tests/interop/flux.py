#!/usr/bin/env python3
"""As compare.py, for FLUX.1: trains small random models with the built program and compares with diffusers, live.

  cargo build --release
  tests/interop/flux.py [--tiny ../shared/parity/tiny_flux.py] [--binary target/release/seg4diff] [--variant dev …]
                        [--layer N …] [--seed N] [--max-sequence-length N] [--keep DIR]

For dev, and schnell: --tiny makes a pipeline of random weights, in one file and in shards; `train` takes a few large steps
on data/smoke; `export` writes all three formats; then, with the bounds of compare.py,
  image      `generate --latents` and FluxPipeline with load_lora_weights; the sharded model draws the same bytes
  effect     the same with and without the LoRA in diffusers
  logits, probability   `probe` and diffusers' attention, of --layer: a double-stream and a single-stream block
  peft       PeftModel.from_pretrained on the PEFT export against load_lora_weights
  comfyui    the image of `generate` with the ComfyUI export
  kohya      the ComfyUI export of an adapter of the released width through diffusers' converter: relative difference of ΔW
Needs torch, diffusers, transformers, peft, pillow (seen: torch 2.15, diffusers 0.42.1, transformers 5.23, peft 0.21.2).
"""
import argparse, io, logging, math, os, sys, tarfile, tempfile
import numpy as np, torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
import compare
from compare import PROMPTS, ROOT, report, run, train_and_export

logging.disable(logging.WARNING)
SIZE, SIGMA, GUIDANCE, DOUBLE, SINGLE, WORDS = 128, 0.515, 4.5, 2, 3, 77
STEPS = {"dev": 12, "schnell": 4}
SHAPE = ["--double", DOUBLE, "--single", SINGLE, "--heads", 3, "--head-dim", 20]


def train(binary, model, work, layer, tokens):
    open(f"{work}/config.toml", "w").write(f'''
seed = 5
device = "cpu"
output = "{work}/run"
[model]
path = "{model}"
dtype = "f32"
text_encoders = ["clip_l", "t5"]
max_sequence_length = {tokens}
expert_layers = [{layer}]
[lora]
rank = 4
alpha = 6.0
targets = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_k_proj", "proj_mlp", "proj_out", "ff.net.2"]
[data]
format = "sa1b"
source = ["{ROOT}/data/smoke/sa_*.tar"]
captions = "{ROOT}/data/smoke/captions.json"
resolution = {SIZE}
crop = "center"
shuffle_buffer = 8
workers = 2
[optim]
lr = 2e-2
lora_lr_scale = 1.0
clip_norm = 0.0
warmup_steps = 0
[train]
steps = 8
batch = 2
accumulate = 1
[checkpoint]
every = 0
''')
    train_and_export(binary, work)
    return f"{work}/run/lora.safetensors"


def draw(pipe, latents, variant, tokens):
    """Images as diffusers draws them, of 255."""
    each = []
    for i, prompt in enumerate(PROMPTS):
        packed = FluxPipeline._pack_latents(latents[i:i + 1], 1, 16, SIZE // 8, SIZE // 8)
        each.append(pipe(prompt, height=SIZE, width=SIZE, num_inference_steps=STEPS[variant], guidance_scale=GUIDANCE,
                         latents=packed, max_sequence_length=tokens, output_type="np").images[0])
    return (np.stack(each) * 255).round()


def drawn(arguments, work, name, model, variant, *more):
    """Images as the program draws them."""
    prompts = [x for prompt in PROMPTS for x in ("--prompt", prompt)]
    tokens = ["--max-sequence-length", arguments.max_sequence_length] if arguments.max_sequence_length else []
    run(arguments.binary, "generate", "--model", model, *prompts, "--out", f"{work}/{name}", "--size", SIZE, "--steps",
        STEPS[variant], "--guidance", GUIDANCE, "--latents", f"{work}/latents.safetensors", "--device", "cpu", *tokens, *more)
    return np.stack([np.asarray(Image.open(f"{work}/{name}/{i:06}.png").convert("RGB"), dtype=np.float64)
                     for i in range(len(PROMPTS))])


class Probe(FluxAttnProcessor):
    """Keeps its block's logits of image queries to the word tokens, and the softmax over all joint keys; text comes first."""

    def __init__(self, text):
        super().__init__()
        self.text = text

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        split = lambda t: t.unflatten(-1, (attn.heads, -1))
        q, k = attn.norm_q(split(attn.to_q(hidden_states))), attn.norm_k(split(attn.to_k(hidden_states)))
        if encoder_hidden_states is not None:
            q = torch.cat([attn.norm_added_q(split(attn.add_q_proj(encoder_hidden_states))), q], 1)
            k = torch.cat([attn.norm_added_k(split(attn.add_k_proj(encoder_hidden_states))), k], 1)
        q, k = (apply_rotary_emb(t, image_rotary_emb, sequence_dim=1).transpose(1, 2) for t in (q, k))
        scores = q[:, :, self.text:] @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        words = min(WORDS, self.text)
        self.logits, self.probability = scores[0, :, :, :words], scores.softmax(-1)[0, :, :, :words].mean(0)
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)


@torch.no_grad()
def forward(pipe, image, prompt, noise, tokens):
    """The transformer's output on one noised image and prompt, with the guidance scale of training."""
    pixels = torch.tensor(np.asarray(image), dtype=torch.float32).permute(2, 0, 1)[None] / 127.5 - 1
    config = pipe.vae.config
    latent = (pipe.vae.encode(pixels).latent_dist.mode() - config.shift_factor) * config.scaling_factor
    context, pooled, text_ids = pipe.encode_prompt(prompt, None, max_sequence_length=tokens)
    noised = (1 - SIGMA) * latent + SIGMA * noise
    _, c, h, w = noised.shape
    guidance = torch.tensor([3.5]) if pipe.transformer.config.guidance_embeds else None
    return pipe.transformer(hidden_states=FluxPipeline._pack_latents(noised, 1, c, h, w), timestep=torch.tensor([SIGMA]),
                            guidance=guidance, encoder_hidden_states=context, pooled_projections=pooled, txt_ids=text_ids,
                            img_ids=FluxPipeline._prepare_latent_image_ids(1, h // 2, w // 2, "cpu", torch.float32),
                            return_dict=False)[0]


def kohya(arguments, work):
    """An adapter of the released width as exported for kohya and ComfyUI, through diffusers' converter."""
    generator, width, tensors = torch.Generator().manual_seed(3), 3072, {}
    sizes = {"transformer_blocks.0.attn.to_q": (width, width), "transformer_blocks.0.attn.to_v": (width, width),
             "transformer_blocks.18.attn.add_k_proj": (width, width), "transformer_blocks.3.ff.net.0.proj": (width, 4 * width),
             "transformer_blocks.3.norm1.linear": (width, 6 * width), "single_transformer_blocks.0.attn.to_q": (width, width),
             "single_transformer_blocks.0.attn.to_k": (width, width), "single_transformer_blocks.0.attn.to_v": (width, width),
             "single_transformer_blocks.0.proj_mlp": (width, 4 * width), "single_transformer_blocks.37.attn.to_k": (width, width),
             "single_transformer_blocks.37.proj_out": (5 * width, width), "single_transformer_blocks.1.norm.linear": (width, 3 * width)}
    for name, (inner, outer) in sizes.items():
        tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(4, inner, generator=generator)
        tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(outer, 4, generator=generator)
    save_file(tensors, f"{work}/wide.safetensors", {"format": "pt"})
    run(arguments.binary, "export", "--lora", f"{work}/wide.safetensors", "--format", "comfyui", "--out", f"{work}/wide_kohya.safetensors")
    back = _convert_kohya_flux_lora_to_diffusers(load_file(f"{work}/wide_kohya.safetensors"))
    delta = lambda of, name: (of.get(f"transformer.{name}.lora_B.weight", torch.zeros(sizes[name][1], 1))
                              @ of.get(f"transformer.{name}.lora_A.weight", torch.zeros(1, sizes[name][0])))
    worst = 0.0
    for name in sizes:
        wanted = delta(tensors, name)
        worst = max(worst, float((delta(back, name) - wanted).norm() / wanted.norm()))
    for key in (k for k in back if k.endswith("lora_B.weight")):
        name = key.removeprefix("transformer.").removesuffix(".lora_B.weight")
        if name not in sizes: worst = max(worst, float(back[key].abs().max()))
    report("kohya", "converter", worst, worst < 1e-5, "< 1e-5")


def compare_variant(variant, arguments, work):
    model, tokens = f"{work}/model", arguments.max_sequence_length or 512
    for out, shards in ((model, []), (f"{work}/sharded", ["--shard-mb", 0.5])):
        run(sys.executable, arguments.tiny, "--out", out, "--variant", variant, "--seed", arguments.seed, *SHAPE, *shards)
    lora = train(arguments.binary, model, work, arguments.layer[0], tokens)
    torch.manual_seed(arguments.seed + 1)
    latents, noise = torch.randn(len(PROMPTS), 16, SIZE // 8, SIZE // 8), torch.randn(1, 16, SIZE // 8, SIZE // 8)
    save_file({"latents": latents}, f"{work}/latents.safetensors")
    save_file({"noise": noise}, f"{work}/noise.safetensors")

    pipe = FluxPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    plain = draw(pipe, latents, variant, tokens)
    ours = drawn(arguments, work, "plain", model, variant)
    report(variant, "image, plain", np.abs(ours - plain).mean(), np.abs(ours - plain).mean() < 0.05, "< 0.05 of 255")
    sharded = drawn(arguments, work, "from_shards", f"{work}/sharded", variant)
    report(variant, "sharded", np.abs(sharded - ours).max(), np.array_equal(sharded, ours), "the same")
    pipe.load_lora_weights(os.path.dirname(lora), weight_name=os.path.basename(lora))
    theirs, ours = draw(pipe, latents, variant, tokens), drawn(arguments, work, "ours", model, variant, "--lora", lora)
    effect, difference = np.abs(theirs - plain).mean(), np.abs(theirs - ours).mean()
    report(variant, "effect", effect, effect > 1, "> 1 of 255")
    report(variant, "image", difference, difference < 0.05, "< 0.05 of 255")
    comfyui = drawn(arguments, work, "comfyui", model, variant, "--lora", f"{work}/comfyui.safetensors")
    difference = np.abs(comfyui - ours).mean()
    report(variant, "comfyui", difference, difference < 0.05, "< 0.05 of 255")

    with tarfile.open(f"{ROOT}/data/smoke/sa_000000.tar") as tar:
        jpeg = next(tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg"))
    image = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((SIZE, SIZE))
    image.save(f"{work}/image.png")
    for layer in arguments.layer:
        run(arguments.binary, "probe", "--model", model, "--lora", lora, "--image", f"{work}/image.png", "--prompt", PROMPTS[0],
            "--layer", layer, "--out", f"{work}/probe_{layer}", "--size", SIZE, "--sigma", SIGMA, "--noise",
            f"{work}/noise.safetensors", "--device", "cpu", "--max-sequence-length", tokens)
        found = load_file(f"{work}/probe_{layer}/attention.safetensors")
        attention = [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks][layer].attn
        usual, attention.processor = attention.processor, Probe(tokens)
        with_lora = forward(pipe, image, PROMPTS[0], noise, tokens)
        for name in ("logits", "probability"):
            expected = getattr(attention.processor, name).transpose(-1, -2).unflatten(-1, (SIZE // 16, SIZE // 16))
            assert found[name].shape == expected.shape, f"{name}: {found[name].shape}, expected {expected.shape}"
            difference = float((found[name] - expected).abs().max() / expected.abs().max())
            report(variant, f"{name} {layer}", difference, difference < 1e-4, "< 1e-4 of the largest")
        attention.processor = usual

    base = FluxTransformer2DModel.from_pretrained(model, subfolder="transformer")
    pipe.transformer = PeftModel.from_pretrained(base, f"{work}/peft").base_model.model.eval()
    difference = float((forward(pipe, image, PROMPTS[0], noise, tokens) - with_lora).norm() / with_lora.norm())
    report(variant, "peft", difference, difference < 1e-5, "< 1e-5")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", default=f"{ROOT}/../shared/parity/tiny_flux.py")
    parser.add_argument("--binary", default=f"{ROOT}/target/release/seg4diff")
    parser.add_argument("--variant", action="append", choices=["dev", "schnell"])
    parser.add_argument("--layer", action="append", type=int, help="blocks to probe; the first is the expert")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="folder for everything that is made, instead of a temporary one")
    parser.add_argument("--max-sequence-length", type=int)
    arguments = parser.parse_args()
    arguments.layer = arguments.layer or [1, 3]
    arguments.binary = os.path.abspath(arguments.binary)
    for path, what in ((arguments.tiny, "--tiny"), (arguments.binary, "--binary")):
        if not os.path.exists(path): sys.exit(f"{what}: no file {path}")
    with tempfile.TemporaryDirectory() as temporary:
        kohya(arguments, temporary)
        for variant in arguments.variant or ["dev", "schnell"]:
            work = os.path.abspath(f"{arguments.keep or temporary}/{variant}")
            os.makedirs(work, exist_ok=True)
            compare_variant(variant, arguments, work)
    sys.exit(f"out of bounds: {', '.join(compare.failed)}" if compare.failed else 0)
