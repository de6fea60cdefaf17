#!/usr/bin/env python3
"""Draws with perturbed guidance in diffusers' modules and in the built program, and compares.

  cargo build --release
  tests/interop/perturbed.py --model DIR [--layer 1] [--sigma 2] [--scale 1.5] [--size 64] [--steps 6] [--seed N]

The block's scores between image queries and text keys are blurred, each key's map on its own, before the softmax. Prints
the mean difference of the images (of 255; < 0.05 is asked) and how much the guidance itself changes them; exit status 1
if out of bounds. Needs torch, diffusers, transformers, pillow (seen: torch 2.15, diffusers 0.42.1, transformers 5.23).
"""
import argparse, math, subprocess, sys, tempfile
from pathlib import Path
import numpy as np, torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["a cat on the grass", "a red bus and a tree"]
arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("--model", required=True)
arguments.add_argument("--layer", type=int, default=1)
arguments.add_argument("--sigma", type=float, default=2)
arguments.add_argument("--scale", type=float, default=1.5)
arguments.add_argument("--guidance", type=float, default=4)
arguments.add_argument("--size", type=int, default=64)
arguments.add_argument("--steps", type=int, default=6)
arguments.add_argument("--seed", type=int, default=0)
arguments.add_argument("--binary", default=ROOT / "target/release/seg4diff")
a = arguments.parse_args()


class Blurred:
    """Joint attention with blurred image→text scores."""

    def __init__(self, rows): self.rows = rows

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        x, c = hidden_states, encoder_hidden_states
        split = lambda t: t.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        norm = lambda f, t: t if f is None else f(t)
        q = torch.cat([norm(attn.norm_q, split(attn.to_q(x))), norm(attn.norm_added_q, split(attn.add_q_proj(c)))], 2)
        k = torch.cat([norm(attn.norm_k, split(attn.to_k(x))), norm(attn.norm_added_k, split(attn.add_k_proj(c)))], 2)
        v = torch.cat([split(attn.to_v(x)), split(attn.add_v_proj(c))], 2)
        scores, n = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), x.shape[1]
        place = torch.arange(n)
        distance = (place[:, None] // self.rows - place // self.rows) ** 2 + (place[:, None] % self.rows - place % self.rows) ** 2
        weights = torch.exp(-distance / (2 * a.sigma ** 2))
        weights = weights / weights.sum(1, keepdim=True)
        scores[:, :, :n, n:] = weights @ scores[:, :, :n, n:]
        out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        image, text = attn.to_out[0](out[:, :n]), out[:, n:]
        return (image, text) if attn.context_pre_only else (image, attn.to_add_out(text))


pipe = StableDiffusion3Pipeline.from_pretrained(a.model, torch_dtype=torch.float32, text_encoder_3=None, tokenizer_3=None)
block = pipe.transformer.transformer_blocks[a.layer].attn
plain, side = block.processor, a.size // pipe.vae_scale_factor
torch.manual_seed(a.seed)
latents = torch.randn(len(PROMPTS), pipe.transformer.config.in_channels, side, side)


@torch.no_grad()
def diffusers(scale):
    images = []
    for index, prompt in enumerate(PROMPTS):
        context, negative, pooled, negative_pooled = pipe.encode_prompt(prompt, prompt, prompt, negative_prompt="",
                                                                        do_classifier_free_guidance=True)
        pipe.scheduler.set_timesteps(a.steps)
        z = latents[index:index + 1].clone()
        velocity = lambda c, p, t: pipe.transformer(z, c, p, t.expand(1), return_dict=False)[0]
        for t in pipe.scheduler.timesteps:
            worse, better = velocity(negative, negative_pooled, t), velocity(context, pooled, t)
            v = worse + a.guidance * (better - worse)
            if scale:
                block.processor = Blurred(side // pipe.transformer.config.patch_size)
                v = v + scale * (better - velocity(context, pooled, t))
                block.processor = plain
            z = pipe.scheduler.step(v, t, z, return_dict=False)[0]
        image = pipe.vae.decode(z / pipe.vae.config.scaling_factor + (pipe.vae.config.shift_factor or 0), return_dict=False)[0]
        images.append((image / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy())
    return (np.stack(images) * 255).round()


def program():
    with tempfile.TemporaryDirectory() as work:
        save_file({"latents": latents}, f"{work}/latents.safetensors")
        prompts = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
        subprocess.run([str(x) for x in (a.binary, "generate", "--model", a.model, *prompts, "--out", f"{work}/out", "--size",
                        a.size, "--steps", a.steps, "--guidance", a.guidance, "--perturb-scale", a.scale, "--perturb-layer",
                        a.layer, "--perturb-sigma", a.sigma, "--latents", f"{work}/latents.safetensors", "--device", "cpu")],
                       check=True, capture_output=True)
        return np.stack([np.asarray(Image.open(f"{work}/out/{i:06}.png"), dtype=np.float64) for i in range(len(PROMPTS))])


perturbed = diffusers(a.scale)
difference = np.abs(perturbed - program()).mean()
print(f"the guidance changes the images by {np.abs(perturbed - diffusers(0)).mean():.2f} of 255")
print(f"{difference:.2g} of 255 apart ({'ok' if difference < 0.05 else 'OUT OF BOUNDS'})")
sys.exit(int(difference >= 0.05))
