#!/usr/bin/env python3
"""Drawing as diffusers does it, without text encoders and autoencoder: the competitor of generate.rs.

  generate.py [--preset demo|sd3-width] [--device cpu|cuda] [--batch N] [--steps N] [--rounds N]

The loop of StableDiffusion3Pipeline: guidance by a batch twice as large, Euler steps. Prints one JSON line. Needs torch,
diffusers.
"""
import argparse, json, os, resource, time
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

PRESETS = {  # layers, heads, head size, latent side, patch, text tokens, joint dim, pooled dim
    "demo": (8, 6, 32, 16, 1, 77, 192, 192),
    "sd3-width": (4, 24, 64, 64, 2, 154, 4096, 2048),
}
ap = argparse.ArgumentParser()
ap.add_argument("--preset", choices=PRESETS, default="demo")
ap.add_argument("--device", default="cpu")
ap.add_argument("--batch", type=int, default=4)
ap.add_argument("--steps", type=int, default=8)
ap.add_argument("--rounds", type=int, default=3)
a = ap.parse_args()
layers, heads, hd, lat, patch, txt, joint, pooled = PRESETS[a.preset]
torch.set_num_threads(len(os.sched_getaffinity(0)))
torch.manual_seed(0)
width, dev = heads * hd, a.device
model = SD3Transformer2DModel(
    sample_size=lat, patch_size=patch, in_channels=16, num_layers=layers, attention_head_dim=hd,
    num_attention_heads=heads, joint_attention_dim=joint, caption_projection_dim=width,
    pooled_projection_dim=pooled, out_channels=16, pos_embed_max_size=max(lat, 192)).eval().to(dev)
noise = torch.randn(a.batch, 16, lat, lat, device=dev)
text, pool = torch.randn(2 * a.batch, txt, joint, device=dev), torch.randn(2 * a.batch, pooled, device=dev)


@torch.inference_mode()
def draw():
    start = time.perf_counter()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(a.steps, device=dev)
    x = noise
    for t in scheduler.timesteps:
        v = model(hidden_states=torch.cat([x, x]), timestep=t.expand(2 * a.batch), encoder_hidden_states=text,
                  pooled_projections=pool, return_dict=False)[0]
        negative, positive = v.chunk(2)
        x = scheduler.step(negative + 7.0 * (positive - negative), t, x, return_dict=False)[0]
    if dev != "cpu": torch.cuda.synchronize()
    return time.perf_counter() - start


draw()
times = sorted(draw() for _ in range(a.rounds))
median = times[len(times) // 2]
print(json.dumps({"what": "torch", "work": "generate", **vars(a), "batch_ms": round(1e3 * median, 1),
                  "images_per_s": round(a.batch / median, 3),
                  "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
                  "torch": torch.__version__}))
