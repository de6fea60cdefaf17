#!/usr/bin/env python3
"""Open-vocabulary segmentation as its users run it today, in diffusers: the competitor of segmentation.rs.

  segmentation.py [--preset sd3-width] [--batch N] [--rounds N] [--classes N]

The whole transformer runs, and the expert's processor forms the whole matrix of scores and its softmax, as the released
code does; then the mean over heads and over a class's tokens, enlargement, and the best class of every pixel. Latents and
text embeddings are given. Prints one JSON line. Needs torch, diffusers.
"""
import argparse, json, math, os, resource, time
import torch, torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import JointAttnProcessor2_0

PRESETS = {  # layers, heads, head size, latent side, patch, text tokens, expert, joint dim, pooled dim
    "demo": (8, 6, 32, 16, 1, 77, 4, 192, 192),
    "sd3-width": (4, 24, 64, 64, 2, 154, 2, 4096, 2048),
}
ap = argparse.ArgumentParser()
ap.add_argument("--preset", choices=PRESETS, default="sd3-width")
ap.add_argument("--batch", type=int, default=1)
ap.add_argument("--rounds", type=int, default=3)
ap.add_argument("--classes", type=int, default=8)
a = ap.parse_args()
layers, heads, hd, lat, patch, txt, expert, joint, pooled = PRESETS[a.preset]
torch.set_num_threads(len(os.sched_getaffinity(0)))
torch.manual_seed(0)


class Probe(JointAttnProcessor2_0):
    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, *args, **kwargs):
        b = hidden_states.shape[0]
        split = lambda t: t.view(b, -1, attn.heads, t.shape[-1] // attn.heads).transpose(1, 2)
        q = torch.cat([split(attn.to_q(hidden_states)), split(attn.add_q_proj(encoder_hidden_states))], 2)
        k = torch.cat([split(attn.to_k(hidden_states)), split(attn.add_k_proj(encoder_hidden_states))], 2)
        self.weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)


width, grid = heads * hd, lat // patch
model = SD3Transformer2DModel(
    sample_size=lat, patch_size=patch, in_channels=16, num_layers=layers, attention_head_dim=hd,
    num_attention_heads=heads, joint_attention_dim=joint, caption_projection_dim=width,
    pooled_projection_dim=pooled, out_channels=16, pos_embed_max_size=max(lat, 192)).eval()
probe = Probe()
model.transformer_blocks[expert].attn.processor = probe
x = torch.randn(a.batch, 16, lat, lat)
text, pool, t = torch.randn(a.batch, txt, joint), torch.randn(a.batch, pooled), torch.full((a.batch,), 500.0)


@torch.inference_mode()
def segment():
    start = time.perf_counter()
    model(hidden_states=x, timestep=t, encoder_hidden_states=text, pooled_projections=pool, return_dict=False)
    n = grid * grid
    maps = probe.weights[:, :, :n, n:n + 77].mean(1)
    maps = torch.stack([maps[:, :, 1 + 2 * c:3 + 2 * c].mean(-1) for c in range(a.classes)], 1)
    maps = F.interpolate(maps.reshape(a.batch, -1, grid, grid), size=(8 * lat, 8 * lat), mode="bilinear")
    maps.argmax(1)
    return time.perf_counter() - start


segment()
times = sorted(segment() for _ in range(a.rounds))
median = times[len(times) // 2]
print(json.dumps({"what": "torch", **vars(a), "batch_ms": round(1e3 * median, 1),
                  "images_per_s": round(a.batch / median, 3),
                  "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
                  "torch": torch.__version__}))
