#!/usr/bin/env python3
"""Draws 16 captions with diffusers' pipeline into one picture: samples.py PIPELINE OUT.png [--guidance 4]"""
import argparse

import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

CAPTIONS = [
    "a cat on the grass", "a bus on the sand", "a boat in the sea", "a rocket at night",
    "a penguin in the snow", "an airplane in the sky", "a house on the grass", "a panda and a tree on the grass",
    "a car and a dog on the sand", "a fish and an octopus in the sea", "a banana and an apple on the grass",
    "a lion on the sand", "a butterfly in the sky", "a mushroom and a pig on the grass", "an umbrella in the snow",
    "a tree, a car and a house in the snow",
]
arguments = argparse.ArgumentParser()
arguments.add_argument("pipeline")
arguments.add_argument("out")
arguments.add_argument("--guidance", type=float, default=4)
arguments.add_argument("--steps", type=int, default=28)
a = arguments.parse_args()
pipe = StableDiffusion3Pipeline.from_pretrained(a.pipeline, torch_dtype=torch.float32,
                                                text_encoder_3=None, tokenizer_3=None)
pipe.set_progress_bar_config(disable=True)
images = pipe(CAPTIONS, height=64, width=64, num_inference_steps=a.steps, guidance_scale=a.guidance,
              generator=torch.Generator().manual_seed(0)).images
sheet = Image.new("RGB", (4 * 196, 4 * 196), "white")
for i, image in enumerate(images):
    sheet.paste(image.resize((192, 192), Image.NEAREST), (i % 4 * 196 + 2, i // 4 * 196 + 2))
sheet.save(a.out)
