#!/usr/bin/env python3
"""Draws with the demo's base model, and with a LoRA on it, in diffusers and in the built program, and compares.

  cargo build --release
  tests/interop/demo.py [--lora runs/demo/lora.safetensors] [--binary target/release/seg4diff] [--seed N]

Prints the mean difference of the images (of 255; < 0.05 is asked), with and without the LoRA, and how much the LoRA
itself changes them in diffusers. Exit status 1 if one is out of bounds. Needs torch, diffusers, transformers, peft,
pillow (seen: torch 2.15, diffusers 0.42.1, transformers 5.23, peft 0.21.2).
"""
import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["a cat on the grass", "a bus and a tree on the sand", "a rocket at night"]
SIZE, STEPS, GUIDANCE = 64, 12, 4.0

arguments = argparse.ArgumentParser()
arguments.add_argument("--lora")
arguments.add_argument("--binary", default=ROOT / "target/release/seg4diff")
arguments.add_argument("--base", default=ROOT / "checkpoints/demo-base")
arguments.add_argument("--seed", type=int, default=0)
a = arguments.parse_args()

pipe = StableDiffusion3Pipeline.from_pretrained(a.base, torch_dtype=torch.float32, text_encoder_3=None, tokenizer_3=None)
pipe.set_progress_bar_config(disable=True)
side = SIZE // pipe.vae_scale_factor
latents = torch.randn(len(PROMPTS), pipe.transformer.config.in_channels, side, side,
                      generator=torch.Generator().manual_seed(a.seed))


def diffusers():
    images = [pipe(prompt, height=SIZE, width=SIZE, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
                   latents=latents[i:i + 1].clone(), output_type="np").images[0] for i, prompt in enumerate(PROMPTS)]
    return (np.stack(images) * 255).round()


def program(*lora):
    with tempfile.TemporaryDirectory() as work:
        save_file({"latents": latents}, f"{work}/latents.safetensors")
        prompts = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
        subprocess.run([a.binary, "generate", "--model", a.base, *prompts, "--out", work, "--size", str(SIZE), "--steps",
                        str(STEPS), "--guidance", str(GUIDANCE), "--latents", f"{work}/latents.safetensors", "--device",
                        "cpu", *lora], check=True, capture_output=True)
        return np.stack([np.asarray(Image.open(f"{work}/{i:06}.png").convert("RGB"), dtype=np.float64)
                         for i in range(len(PROMPTS))])


base = diffusers()
differences = {"base": np.abs(base - program()).mean()}
if a.lora:
    pipe.load_lora_weights(str(Path(a.lora).parent), weight_name=Path(a.lora).name)
    trained = diffusers()
    differences["with the LoRA"] = np.abs(trained - program("--lora", a.lora)).mean()
    print(f"the LoRA changes the images by {np.abs(trained - base).mean():.2f} of 255")
for what, difference in differences.items():
    print(f"{what}: {difference:.2g} of 255 ({'ok' if difference < 0.05 else 'OUT OF BOUNDS'})")
sys.exit(any(difference >= 0.05 for difference in differences.values()))
