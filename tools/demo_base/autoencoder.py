#!/usr/bin/env python3
"""Trains the demo's autoencoder: a scene of 64 pixels as 16×16 latents of 16 channels.

  autoencoder.py --scenes DIR --out DIR [--minutes M] [--seed N]

In pixels the details of a face have a twentieth of the deviation of a background's brightness: noise hides them at all
but the last steps, and a small model does not learn them. Noise on the latents while the autoencoder learns, and a
price on their size, bring the channels nearer to each other.
"""
import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

import scenes

arguments = argparse.ArgumentParser()
arguments.add_argument("--scenes", required=True)
arguments.add_argument("--out", required=True)
arguments.add_argument("--minutes", type=float, default=12)
arguments.add_argument("--seed", type=int, default=0)
arguments.add_argument("--count", type=int, default=30000)
arguments.add_argument("--channels", type=int, default=16)
arguments.add_argument("--noise", type=float, default=0.1)
arguments.add_argument("--batch", type=int, default=16)
arguments.add_argument("--lr", type=float, default=2e-3)
arguments.add_argument("--threads", type=int, default=2)
a = arguments.parse_args()
torch.manual_seed(a.seed)
torch.set_num_threads(a.threads)

images = torch.from_numpy(scenes.load(a.scenes, a.count)[0])
HELD_OUT = 500


def pictures(index):
    return (images[index].permute(0, 3, 1, 2).float() / 127.5 - 1).to(memory_format=torch.channels_last)


vae = AutoencoderKL(
    latent_channels=a.channels, block_out_channels=(16, 32, 48), layers_per_block=1, norm_num_groups=4,
    sample_size=images.shape[1], down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False).to(memory_format=torch.channels_last)
encode, decode = torch.compile(vae.encoder), torch.compile(vae.decoder)
optimizer = torch.optim.AdamW(vae.parameters(), lr=a.lr, betas=(0.9, 0.99), weight_decay=1e-3)
Path(a.out).mkdir(parents=True, exist_ok=True)
log = open(Path(a.out) / "autoencoder.jsonl", "w")
began, step, errors = time.time(), 0, []
while (share := (time.time() - began) / (60 * a.minutes)) < 1:
    for group in optimizer.param_groups:
        group["lr"] = a.lr * min(1, (step + 1) / 100, 2 * (1 - share))
    x = pictures(torch.randint(len(images) - HELD_OUT, (a.batch,)))
    with torch.autocast("cpu", torch.bfloat16):
        z = encode(x)[:, :a.channels]
        y = decode(z + a.noise * torch.randn(z.shape))
    error = F.mse_loss(y.float(), x)
    optimizer.zero_grad()
    (error + 1e-4 * z.float().square().mean()).backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 0.5)
    optimizer.step()
    step += 1
    errors.append(error.item())
    if step % 500 == 0:
        line = {"images": step * a.batch, "minutes": round((time.time() - began) / 60, 1),
                "psnr": round(-10 * math.log10(sum(errors) / len(errors) / 4), 2)}
        errors = []
        print(json.dumps(line), flush=True)
        log.write(json.dumps(line) + "\n")
        log.flush()
with torch.no_grad():
    vae.encoder.conv_out.weight[a.channels:] = 0
    vae.encoder.conv_out.bias[a.channels:] = -12  # the posterior is sure of itself
    x = pictures(torch.arange(len(images) - HELD_OUT, len(images)))
    latents = vae.encode(x).latent_dist.mode()
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    y = vae.decode(latents).sample.clamp(-1, 1)
    psnr = -10 * math.log10(F.mse_loss(y, x).item() / 4)
    line = {"images": step * a.batch, "held_out_psnr": round(psnr, 2), "deviations": latents.std((0, 2, 3)).tolist()}
    print(json.dumps(line), flush=True)
    log.write(json.dumps(line) + "\n")
vae.to(memory_format=torch.contiguous_format).half().save_pretrained(f"{a.out}/vae", safe_serialization=True)
