#!/usr/bin/env python3
"""Trains small random models with the built program and compares what it draws and probes with diffusers, live.

  cargo build --release
  tests/interop/compare.py [--tiny ../shared/parity/tiny_sd3.py] [--binary target/release/seg4diff]
                           [--variant sd3 --variant sd3.5-medium …] [--seed N] [--t5] [--keep DIR]

For SD3, SD3.5-medium and SD3.5-large: --tiny makes a pipeline of random weights; `train` takes a few large steps on
data/smoke; `export` writes all three formats; then
  image      `generate --latents` and StableDiffusion3Pipeline with load_lora_weights: mean difference of 255, < 0.05
  effect     the same with and without the LoRA in diffusers: must be > 1, or the comparison would say nothing
  logits     `probe` and a hook on the block's attention in diffusers: largest difference, < 1e-4 of the largest value
  probability  the same
  peft       PeftModel.from_pretrained on the PEFT export against load_lora_weights: relative difference, < 1e-5
  comfyui    the image of `generate` with the ComfyUI export against its image with the LoRA: < 0.05
Prints a line a figure; exit status 1 if one is out of bounds. Without T5, diffusers has `max_sequence_length` zero tokens
in its place (up to 0.35: 77, whatever it was told); --max-sequence-length sets another number than 256 on both sides.
Needs torch, diffusers, transformers, peft, pillow (seen: torch 2.15, diffusers 0.42.1, transformers 5.23, peft 0.21.2).
"""
import argparse, io, logging, math, os, subprocess, sys, tarfile, tempfile
import numpy as np, torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention_processor import JointAttnProcessor2_0
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file

logging.disable(logging.WARNING)
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROMPTS = ["a photo of a cat on the grass", "A red bus, and a dog with an umbrella!"]
SIZE, STEPS, GUIDANCE, LAYER, SIGMA = 128, 12, 5.0, 2, 0.515
SEQUENCE = 256
failed = []


def report(variant, what, value, good, bound):
    print(f"{variant:13} {what:12} {value:10.3g}   {'ok' if good else 'OUT OF BOUNDS'} ({bound})", flush=True)
    if not good: failed.append(f"{variant} {what}")


def text_flags(arguments):
    """What the program is told about the text: nothing where its defaults are those of diffusers."""
    flags = ["--text-encoders", "clip_l,clip_g,t5"] if arguments.t5 else []
    return flags + (["--max-sequence-length", SEQUENCE] if arguments.max_sequence_length else [])


def run(*command):
    done = subprocess.run([str(c) for c in command], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nstatus {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def train_and_export(binary, work):
    """Trains by WORK/config.toml and exports the last checkpoint in all three formats."""
    run(binary, "train", "--config", f"{work}/config.toml")
    checkpoints = sorted(os.listdir(f"{work}/run/checkpoints"))
    for form, out in (("diffusers", "d.safetensors"), ("peft", "peft"), ("comfyui", "comfyui.safetensors")):
        run(binary, "export", "--checkpoint", f"{work}/run/checkpoints/{checkpoints[-1]}", "--format", form, "--out", f"{work}/{out}")


def train(binary, model, work, t5):
    """A few steps far larger than any recipe's, so that the LoRA is no small change; its file."""
    encoders = '["clip_l", "clip_g", "t5"]' if t5 else '["clip_l", "clip_g"]'
    open(f"{work}/config.toml", "w").write(f'''
seed = 5
device = "cpu"
output = "{work}/run"
[model]
path = "{model}"
dtype = "f32"
text_encoders = {encoders}
expert_layer = {LAYER}
[lora]
rank = 4
alpha = 6.0
[data]
format = "sa1b"
source = ["{ROOT}/data/smoke/sa_*.tar"]
captions = "{ROOT}/data/smoke/captions.json"
resolution = {SIZE}
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
    a, b = load_file(f"{work}/run/lora.safetensors"), load_file(f"{work}/d.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), "train's lora.safetensors is not export's"
    return f"{work}/run/lora.safetensors"


def pipeline(model, t5):
    without = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipe = StableDiffusion3Pipeline.from_pretrained(model, **without)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, latents):
    """Images as diffusers draws them, of 255."""
    images = [pipe(prompt, height=SIZE, width=SIZE, num_inference_steps=STEPS, guidance_scale=GUIDANCE, negative_prompt="",
                   latents=latents[i:i + 1].clone(), max_sequence_length=SEQUENCE, output_type="np").images[0] for i, prompt in enumerate(PROMPTS)]
    return (np.stack(images) * 255).round()


def drawn(arguments, work, name, model, *more):
    """Images as the program draws them."""
    prompts = [x for prompt in PROMPTS for x in ("--prompt", prompt)]
    run(arguments.binary, "generate", "--model", model, *prompts, "--negative", "", "--out", f"{work}/{name}", "--size", SIZE,
        "--steps", STEPS, "--guidance", GUIDANCE, "--latents", f"{work}/latents.safetensors", "--device", "cpu",
        *text_flags(arguments), *more)
    return np.stack([np.asarray(Image.open(f"{work}/{name}/{i:06}.png").convert("RGB"), dtype=np.float64)
                     for i in range(len(PROMPTS))])


class Probe(JointAttnProcessor2_0):
    """Keeps its block's logits of image queries to the 77 CLIP tokens, and the softmax over all joint keys."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, *args, **kwargs):
        split = lambda t: t.view(t.shape[0], -1, attn.heads, t.shape[-1] // attn.heads).transpose(1, 2)
        q, image = split(attn.to_q(hidden_states)), split(attn.to_k(hidden_states))
        text = split(attn.add_k_proj(encoder_hidden_states))
        if attn.norm_q is not None: q, image, text = attn.norm_q(q), attn.norm_k(image), attn.norm_added_k(text)
        n = image.shape[2]
        scores = q @ torch.cat([image, text], 2).transpose(-1, -2) / math.sqrt(q.shape[-1])
        self.logits, self.probability = scores[0, :, :, n:n + 77], scores.softmax(-1)[0, :, :, n:n + 77].mean(0)
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)


@torch.no_grad()
def forward(pipe, image, prompt, noise):
    """The transformer's output on one noised image and prompt."""
    pixels = torch.tensor(np.asarray(image), dtype=torch.float32).permute(2, 0, 1)[None] / 127.5 - 1
    config = pipe.vae.config
    latent = (pipe.vae.encode(pixels).latent_dist.mode() - config.shift_factor) * config.scaling_factor
    context, _, pooled, _ = pipe.encode_prompt(prompt, prompt, prompt, do_classifier_free_guidance=False,
                                               max_sequence_length=SEQUENCE)
    return pipe.transformer(hidden_states=(1 - SIGMA) * latent + SIGMA * noise, timestep=torch.tensor([1000 * SIGMA]),
                            encoder_hidden_states=context, pooled_projections=pooled, return_dict=False)[0]


def compare(variant, arguments, work):
    t5 = arguments.t5
    model = f"{work}/model"
    run(sys.executable, arguments.tiny, "--out", model, "--variant", variant, "--seed", arguments.seed, *(["--t5"] if t5 else []))
    lora = train(arguments.binary, model, work, t5)
    torch.manual_seed(arguments.seed + 1)
    latents, noise = torch.randn(len(PROMPTS), 16, SIZE // 8, SIZE // 8), torch.randn(1, 16, SIZE // 8, SIZE // 8)
    save_file({"latents": latents}, f"{work}/latents.safetensors")
    save_file({"noise": noise}, f"{work}/noise.safetensors")

    pipe = pipeline(model, t5)
    plain = draw(pipe, latents)
    bare = np.abs(drawn(arguments, work, "plain", model) - plain).mean()
    report(variant, "image, plain", bare, bare < 0.05, "< 0.05 of 255")
    pipe.load_lora_weights(os.path.dirname(lora), weight_name=os.path.basename(lora))
    theirs, ours = draw(pipe, latents), drawn(arguments, work, "ours", model, "--lora", lora)
    effect, difference = np.abs(theirs - plain).mean(), np.abs(theirs - ours).mean()
    report(variant, "effect", effect, effect > 1, "> 1 of 255")
    report(variant, "image", difference, difference < 0.05, "< 0.05 of 255")
    comfyui = drawn(arguments, work, "comfyui", model, "--lora", f"{work}/comfyui.safetensors")
    difference = np.abs(comfyui - ours).mean()
    report(variant, "comfyui", difference, difference < 0.05, "< 0.05 of 255")

    with tarfile.open(f"{ROOT}/data/smoke/sa_000000.tar") as tar:
        jpeg = next(tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg"))
    image = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((SIZE, SIZE))      # in its size: nothing is resized there
    image.save(f"{work}/image.png")
    run(arguments.binary, "probe", "--model", model, "--lora", lora, "--image", f"{work}/image.png", "--prompt", PROMPTS[0],
        "--layer", LAYER, "--out", f"{work}/probe", "--size", SIZE, "--sigma", SIGMA, "--noise", f"{work}/noise.safetensors",
        "--device", "cpu", *text_flags(arguments))
    found = load_file(f"{work}/probe/attention.safetensors")
    probe = Probe()
    pipe.transformer.transformer_blocks[LAYER].attn.processor = probe
    with_lora = forward(pipe, image, PROMPTS[0], noise)
    for name in ("logits", "probability"):
        expected = getattr(probe, name).transpose(-1, -2).unflatten(-1, (SIZE // 16, SIZE // 16))   # [(heads,) 77, h, w]
        assert found[name].shape == expected.shape, f"{name}: {found[name].shape}, expected {expected.shape}"
        difference = float((found[name] - expected).abs().max() / expected.abs().max())
        report(variant, name, difference, difference < 1e-4, "< 1e-4 of the largest")

    pipe.transformer = PeftModel.from_pretrained(SD3Transformer2DModel.from_pretrained(model, subfolder="transformer"),
                                                 f"{work}/peft").base_model.model.eval()
    with_peft = forward(pipe, image, PROMPTS[0], noise)
    difference = float((with_peft - with_lora).norm() / with_lora.norm())
    report(variant, "peft", difference, difference < 1e-5, "< 1e-5")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", default=f"{ROOT}/../shared/parity/tiny_sd3.py")
    parser.add_argument("--binary", default=f"{ROOT}/target/release/seg4diff")
    parser.add_argument("--variant", action="append", choices=["sd3", "sd3.5-medium", "sd3.5-large"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--t5", action="store_true", help="with a third text encoder")
    parser.add_argument("--keep", help="folder for everything that is made, instead of a temporary one")
    parser.add_argument("--max-sequence-length", type=int)
    arguments = parser.parse_args()
    SEQUENCE = arguments.max_sequence_length or SEQUENCE
    arguments.binary = os.path.abspath(arguments.binary)
    for path, what in ((arguments.tiny, "--tiny"), (arguments.binary, "--binary")):
        if not os.path.exists(path): sys.exit(f"{what}: no file {path}")
    with tempfile.TemporaryDirectory() as temporary:
        for variant in arguments.variant or ["sd3", "sd3.5-medium", "sd3.5-large"]:
            work = os.path.abspath(f"{arguments.keep or temporary}/{variant}")
            os.makedirs(work, exist_ok=True)
            compare(variant, arguments, work)
    sys.exit(f"out of bounds: {', '.join(failed)}" if failed else 0)
