#!/usr/bin/env python3
"""FLUX.1's training step as its users run it today, the twin of step.rs: diffusers, PEFT and PyTorch on the same sizes.

Prints one JSON line with the keys of ../shared/bench/torch_step.py, which has SD3: same losses, text embeddings and
latents given, AdamW and clipping as there.

  flux_step.py --preset flux-width|flux-dev [--device cpu|cuda] [--dtype f32|bf16] [--batch N] [--steps N] [--masks N]
               [--checkpointing] [--compile] [--no-cudnn]

--no-cudnn  takes FlashAttention-2 where cuDNN's attention fails.
--masks 0   trains on the flow loss alone: no score head, no matching.
Needs torch, diffusers, peft, scipy (seen: torch 2.15, diffusers 0.42.1, peft 0.21.2).
"""

import argparse
import json
import os
import resource
import time
from unittest import mock

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.models.transformers import transformer_flux
from peft import LoraConfig
from scipy.optimize import linear_sum_assignment

# Double and single blocks, latent side, expert block. Of the text the first 77 tokens are words.
PRESETS = {"flux-width": (2, 2, 64, 1), "flux-dev": (19, 38, 128, 12)}
TEXT_TOKENS, WORDS = 512, 77

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--preset", choices=PRESETS, default="flux-width")
parser.add_argument("--device", default="cpu")
parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
parser.add_argument("--batch", type=int, default=4)
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--masks", type=int, default=16)
parser.add_argument("--checkpointing", action="store_true")
parser.add_argument("--compile", action="store_true")
parser.add_argument("--no-cudnn", action="store_true")
args = parser.parse_args()
torch.backends.cuda.enable_cudnn_sdp(not args.no_cudnn)
double, single, side, expert = PRESETS[args.preset]
device, dtype = torch.device(args.device), {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
grid = side // 2
torch.manual_seed(0)
if device.type == "cpu":
    torch.set_num_threads(len(os.sched_getaffinity(0)))


class Probe(transformer_flux.FluxAttnProcessor):
    """Keeps its block's logits from image tokens to words: [batch, heads, image tokens, words]."""

    def __call__(self, *inputs, **kwargs):
        dispatch = transformer_flux.dispatch_attention_fn

        def keep(query, key, value, **options):
            image, words = query[:, TEXT_TOKENS:].transpose(1, 2), key[:, :WORDS].transpose(1, 2)
            self.logits = image @ words.transpose(-1, -2) / query.shape[-1] ** 0.5
            return dispatch(query, key, value, **options)

        if not args.masks:
            return super().__call__(*inputs, **kwargs)
        with mock.patch.object(transformer_flux, "dispatch_attention_fn", keep):
            return super().__call__(*inputs, **kwargs)


with torch.device(device):
    torch.set_default_dtype(dtype)
    model = FluxTransformer2DModel(num_layers=double, num_single_layers=single, guidance_embeds=True)
    torch.set_default_dtype(torch.float32)
model.requires_grad_(False)
targets = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"]
model.add_adapter(LoraConfig(r=16, lora_alpha=16, init_lora_weights="gaussian", target_modules=targets))
for name, parameter in model.named_parameters():
    if "lora" in name:
        parameter.data = parameter.data.float()
probe = Probe()
model.transformer_blocks[expert].attn.processor = probe
if args.checkpointing:
    model.enable_gradient_checkpointing()
model.train()
layers = [nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()]
head = nn.Sequential(*layers, nn.Conv2d(64, 1, 3, padding=1)).to(device)
parameters = [p for p in model.parameters() if p.requires_grad] + (list(head.parameters()) if args.masks else [])
optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-4)
net = torch.compile(model) if args.compile else model
if device.type == "cuda":
    torch.cuda.reset_peak_memory_stats()

latents = torch.randn(args.batch, 16, side, side, device=device)
text = torch.randn(args.batch, TEXT_TOKENS, 4096, device=device, dtype=dtype)
pooled = torch.randn(args.batch, 768, device=device, dtype=dtype)
text_ids = torch.zeros(TEXT_TOKENS, 3, device=device)
image_ids = FluxPipeline._prepare_latent_image_ids(args.batch, grid, grid, device, torch.float32)
guidance = torch.full((args.batch,), 3.5, device=device)
if args.masks:
    squares = torch.rand(args.batch, args.masks, 4, 4, device=device)
    masks = (F.interpolate(squares, size=(8 * side, 8 * side)) > 0.5).float()
    small = F.interpolate(masks, size=(grid, grid)).flatten(2)


def packed(x):
    return FluxPipeline._pack_latents(x, args.batch, 16, side, side)


def dice_cost(probability, target):
    products = 2 * probability @ target.T + 1
    return 1 - products / (probability.sum(1)[:, None] + target.sum(1)[None] + 1)


def focal_cost(logits, target):
    probability = logits.sigmoid()
    positive = 0.25 * (1 - probability) ** 2 * F.softplus(-logits)
    negative = 0.75 * probability**2 * F.softplus(logits)
    return (positive @ target.T + negative @ (1 - target).T) / logits.shape[1]


def mask_loss(maps, number):
    """Of one image's maps [maps, h, w]."""
    with torch.no_grad():
        flat = maps.flatten(1)
        cost = 0.02 * focal_cost(flat, small[number]) + dice_cost(flat.sigmoid(), small[number])
        chosen, matched = linear_sum_assignment(cost.cpu())
    size = masks.shape[-2:]
    logits = F.interpolate(maps[chosen][:, None], size=size, mode="bilinear")[:, 0].flatten(1)
    target = masks[number, matched].flatten(1)
    probability = logits.sigmoid()
    right = probability * target + (1 - probability) * (1 - target)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = (entropy * (1 - right) ** 2 * (0.25 * target + 0.75 * (1 - target))).mean(1).sum()
    dice = (1 - (2 * (probability * target).sum(1) + 1) / (probability.sum(1) + target.sum(1) + 1)).sum()
    return (0.1 * focal + 0.2 * dice) / (args.batch * args.masks)


def step():
    sigma, noise = torch.rand(args.batch, 1, 1, 1, device=device), torch.randn_like(latents)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.dtype == "bf16"):
        velocity = net(
            hidden_states=packed((1 - sigma) * latents + sigma * noise).to(dtype),
            timestep=sigma.flatten(),
            guidance=guidance,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            txt_ids=text_ids,
            img_ids=image_ids,
            return_dict=False,
        )[0]
        if args.masks:
            maps = probe.logits.transpose(2, 3).reshape(-1, 1, grid, grid)
            maps = (maps + head(maps)).float().reshape(args.batch, -1, grid, grid)
    loss = ((velocity.float() - packed(noise - latents)) ** 2).mean()
    for number in range(args.batch if args.masks else 0):
        loss = loss + mask_loss(maps[number], number)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 0.01)
    optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()


for _ in range(3 if device.type == "cuda" else 1):
    step()
times = []
for _ in range(args.steps):
    started = time.perf_counter()
    step()
    times.append(time.perf_counter() - started)
times.sort()
median = times[len(times) // 2]
if device.type == "cuda":
    peak = torch.cuda.max_memory_allocated()
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
measured = {
    "step_ms": round(1e3 * median, 1),
    "step_ms_min": round(1e3 * times[0], 1),
    "images_per_s": round(args.batch / median, 3),
    "peak_gb": round(peak / 1e9, 2),
    "torch": torch.__version__,
}
print(json.dumps({"what": "torch", **vars(args), **measured}))
