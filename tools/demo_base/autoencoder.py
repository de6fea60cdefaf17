#!/usr/bin/env python3
"""Writes the demo's autoencoder: every pixel is a latent of 3 channels, brightness and two differences of colour.

  autoencoder.py --scenes DIR --out DIR

A 64-pixel scene needs no compression: the MM-DiT's patches of 4×4 give 16×16 tokens. So nothing is trained, the
weights are set: residual blocks add nothing, and what is left of an `AutoencoderKL` (a convolution, a group norm, SiLU,
a convolution) is made linear by two facts: silu(x) − silu(−x) = x, and beside two large constants the norm hardly
depends on the picture. Only the mean and deviation of the latents are measured, on scenes.
"""
import argparse
import math

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

import scenes

LARGE = 64.0  # the constants: the norm varies by about 3 / LARGE² from picture to picture
COLOURS = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / torch.tensor([3, 2, 6])[:, None].sqrt()  # orthonormal


def set_linear(half, matrix):
    """Makes an encoder or decoder multiply the channels of each pixel by `matrix` [outputs, inputs]."""
    for name, module in half.named_modules():
        if name.endswith("conv2"):
            module.weight.zero_()
            module.bias.zero_()
    inputs = matrix.shape[1]
    for conv in (half.conv_in, half.conv_out):
        conv.weight.zero_()
        conv.bias.zero_()
    for i in range(inputs):  # channels: each value, its opposite, and the two constants
        half.conv_in.weight[2 * i, i, 1, 1], half.conv_in.weight[2 * i + 1, i, 1, 1] = 1, -1
    half.conv_in.bias[2 * inputs], half.conv_in.bias[2 * inputs + 1] = LARGE, -LARGE
    deviation = math.sqrt(2 * LARGE**2 / half.conv_in.out_channels)
    for i in range(inputs):
        half.conv_out.weight[:len(matrix), 2 * i, 1, 1] = matrix[:, i] * deviation
        half.conv_out.weight[:len(matrix), 2 * i + 1, 1, 1] = -matrix[:, i] * deviation


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--scenes", required=True)
    arguments.add_argument("--out", required=True)
    a = arguments.parse_args()
    torch.manual_seed(0)
    images = scenes.load(a.scenes, 500)[0]
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        vae = AutoencoderKL(
            latent_channels=3, block_out_channels=(8,), layers_per_block=1, norm_num_groups=1, sample_size=x.shape[-1],
            down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
            use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False)
        set_linear(vae.encoder, COLOURS)
        vae.encoder.conv_out.bias[3:] = -12  # the posterior is sure of itself
        set_linear(vae.decoder, COLOURS.T)
        latents = vae.encode(x).latent_dist.mode()
        vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
        y = vae.decode(latents).sample.clamp(-1, 1)
        print(f"psnr {-10 * math.log10(F.mse_loss(y, x).item() / 4):.1f}, deviations {latents.std((0, 2, 3)).tolist()}, "
              f"means {latents.mean((0, 2, 3)).tolist()}")
    vae.half().save_pretrained(f"{a.out}/vae", safe_serialization=True)
