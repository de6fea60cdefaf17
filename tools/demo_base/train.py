#!/usr/bin/env python3
"""Trains the demo's base model on scenes and their captions, without masks, and writes it as a diffusers pipeline.

  train.py --scenes DIR --vae DIR --out DIR [--minutes M] [--seed N] [--held-out DIR] [--resume FILE]

`--vae` is what autoencoder.py wrote. `--held-out` are scenes of the style that training does not see: their label maps
only measure, every few minutes, how well each block's attention segments.

The text encoders learn with the MM-DiT and are as simple as can be: one layer, so that the layer before the last, which
SD3 reads, is the embedding of each word by itself; and a projection of zeros, so that the pooled text says nothing. What
a picture shows is to be found in its words' tokens alone, and the expert appears early.

Equal tokens are computed once: zeros stand in T5's place (77 as in training scripts, or 256 as in the pipeline), and the
padding after the words is one token too, as positions from WORDS on have an embedding of zero. Each counts for as many
as there would be by the logarithm of their number in the attention.
"""
import argparse
import copy
import json
import math
import os
import shutil
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import scenes
import tokenizer as bpe
from attention import Counted, segmentation_miou

arguments = argparse.ArgumentParser()
arguments.add_argument("--scenes", required=True)
arguments.add_argument("--vae", required=True)
arguments.add_argument("--out", required=True)
arguments.add_argument("--held-out")
arguments.add_argument("--resume")
arguments.add_argument("--minutes", type=float, default=60)
arguments.add_argument("--seed", type=int, default=0)
arguments.add_argument("--count", type=int, default=60000)
arguments.add_argument("--batch", type=int, default=32)
arguments.add_argument("--layers", type=int, default=6)
arguments.add_argument("--heads", type=int, default=4)
arguments.add_argument("--lr", type=float, default=2e-3)
arguments.add_argument("--report-minutes", type=float, default=5)
arguments.add_argument("--threads", type=int, default=2)
arguments.add_argument("--no-compile", action="store_true")
a = arguments.parse_args()
torch.manual_seed(a.seed)
torch.set_num_threads(a.threads)
WIDTH, HEAD, CLIP = 32 * a.heads, 32, 64
TOKENS, WORDS = 77, 24  # of a prompt, and those that may be words
ZEROS = (77, 256)
CAPTION, CLASSES = 0.75, 0.15  # how often the prompt is a caption, the class names, and else nothing

out = Path(a.out)
images, captions = scenes.load(a.scenes, a.count)
classes = json.loads((Path(a.scenes) / "classes.json").read_text())
size = images.shape[1]
tok, vocab = bpe.make(captions, out / ".tokenizer")
vae = AutoencoderKL.from_pretrained(a.vae, torch_dtype=torch.float32).eval()


def encode(pictures):
    """Latents [n, 3, size, size] of uint8 pictures, of the posterior's mean, as the model sees them."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return (vae.encode(x).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor


def clip():
    encoder = CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=vocab, hidden_size=CLIP, intermediate_size=CLIP, num_hidden_layers=1, num_attention_heads=4,
        projection_dim=CLIP, hidden_act="quick_gelu", max_position_embeddings=77,
        bos_token_id=vocab - 2, eos_token_id=vocab - 1, pad_token_id=vocab - 1))
    torch.nn.init.zeros_(encoder.text_projection.weight)
    return encoder


def embeddings(encoder):
    return encoder.text_model.embeddings


def clear_positions(model):
    """Positions that no word has stay zero."""
    with torch.no_grad():
        for encoder in (model.text_encoder, model.text_encoder_2):
            embeddings(encoder).position_embedding.weight[WORDS:] = 0


class Model(torch.nn.Module):
    """The MM-DiT and the two text encoders, which are trained together."""

    def __init__(self):
        super().__init__()
        self.text_encoder, self.text_encoder_2 = clip(), clip()
        self.transformer = SD3Transformer2DModel(
            sample_size=size, patch_size=4, in_channels=3, out_channels=3, num_layers=a.layers,
            attention_head_dim=HEAD, num_attention_heads=a.heads, joint_attention_dim=2 * CLIP,
            caption_projection_dim=WIDTH, pooled_projection_dim=2 * CLIP, pos_embed_max_size=size // 4)
        self.zeros = Counted(self.transformer, WORDS + 2)

    def embed(self, ids):
        """Context [n, WORDS + 2, 128] of token ids [n, WORDS + 1], the last one zero, and the pooled text [n, 128]."""
        context = torch.cat([embeddings(encoder)(ids) for encoder in (self.text_encoder, self.text_encoder_2)], -1)
        return F.pad(context, (0, 0, 0, 1)), context.new_zeros(len(ids), 2 * CLIP)

    def forward(self, latents, timestep, ids):
        context, pooled = self.embed(ids)
        return self.transformer(latents, context, pooled, timestep, return_dict=False)[0]


model = Model()
clear_positions(model)
average = copy.deepcopy(model).eval()
average.zeros = Counted(average.transformer, WORDS + 2)
print({name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}, flush=True)

# Muon for the matrices of the blocks, AdamW for what is not a matrix between features.
matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "transformer_blocks" in name]
others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "transformer_blocks" in name)]
optimizers = [
    torch.optim.Muon(matrices, lr=a.lr, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
    torch.optim.AdamW(others, lr=a.lr, betas=(0.9, 0.95), weight_decay=0.01),
]
scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
sigmas, timesteps = scheduler.sigmas.float(), scheduler.timesteps.float()

cache = out / ".latents.pt"
if cache.exists():
    latents = torch.load(cache, weights_only=True)
else:
    with torch.no_grad():
        latents = torch.cat([encode(images[i:i + 64]).bfloat16() for i in range(0, len(images), 64)])
    torch.save(latents, cache)
del images
print("latents", tuple(latents.shape), latents.float().mean().item(), latents.float().std().item(), flush=True)


def tokens(texts):
    """Token ids [n, WORDS + 1] of prompts: the words, and one for all the padding after them."""
    ids = tok(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids
    assert (ids[:, WORDS:] == tok.pad_token_id).all(), "a caption is too long"
    return ids[:, :WORDS + 1]


caption_ids = tokens(captions).short()
class_ids = tokens([scenes.class_prompt(caption, classes) for caption in captions]).short()
nothing = tokens([""])[0]
held_out = scenes.load_labels(a.held_out, 200) if a.held_out else None


def write(where):
    """The averaged model as a diffusers pipeline, in half precision on disk."""
    parts = {name: copy.deepcopy(getattr(average, name)).half() for name in
             ("transformer", "text_encoder", "text_encoder_2")}
    parts["transformer"].set_attn_processor(type(JOINT)())
    pipeline = StableDiffusion3Pipeline(
        scheduler=scheduler, vae=copy.deepcopy(vae).half(), tokenizer=tok, tokenizer_2=tok, text_encoder_3=None,
        tokenizer_3=None, **parts)
    pipeline.save_pretrained(where, safe_serialization=True)
    for folder in ("tokenizer", "tokenizer_2"):  # the files that the released pipelines carry
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(out / ".tokenizer" / name, Path(where) / folder / name)
        (Path(where) / folder / "tokenizer.json").unlink(missing_ok=True)


from diffusers.models.attention_processor import JointAttnProcessor2_0  # noqa: E402

JOINT = JointAttnProcessor2_0()
step, seen, spent = 0, 0, 0.0
if a.resume:
    state = torch.load(a.resume, weights_only=True)
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    for optimizer, saved in zip(optimizers, state["optimizers"]):
        optimizer.load_state_dict(saved)
    step, seen, spent = state["step"], state["seen"], state["spent"]
forward = model if a.no_compile else torch.compile(model)
log = open(out / "curve.jsonl", "a")
began, reported, losses = time.time() - spent, time.time(), []
while (share := (time.time() - began) / (60 * a.minutes)) < 1:
    # Up within 200 steps, level, and down to zero over the last half.
    rate = a.lr * min(1, (step + 1) / 200, 2 * (1 - share))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
    chosen = torch.randint(len(latents), (a.batch,))
    x = latents[chosen].float()
    mirrored = torch.rand(a.batch) < 0.5
    x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    kind = torch.rand(a.batch)[:, None]
    ids = torch.where(kind < CAPTION, caption_ids[chosen], class_ids[chosen]).long()
    ids = torch.where(kind < CAPTION + CLASSES, ids, nothing)
    index = (torch.sigmoid(torch.randn(a.batch)) * 1000).long().clamp(max=999)
    sigma = sigmas[index][:, None, None, None]
    noise = torch.randn_like(x)
    model.zeros.count(TOKENS - WORDS, ZEROS[torch.randint(2, ()).item()])
    with torch.autocast("cpu", torch.bfloat16):
        velocity = forward((1 - sigma) * x + sigma * noise, timesteps[index], ids)
    loss = F.mse_loss(velocity.float(), noise - x)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    clear_positions(model)
    step, seen = step + 1, seen + a.batch
    decay = min(0.9995, 1 - 1 / (1 + step / 10))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    losses.append(loss.item())
    if step in (1, 20, 100) or time.time() - reported > 60 * a.report_minutes:
        reported = time.time()
        line = {"step": step, "images": seen, "minutes": round((reported - began) / 60, 1), "lr": rate,
                "loss": sum(losses) / len(losses)}
        losses = []
        if held_out and step > 100:
            average.zeros.count(TOKENS - WORDS, 77)
            line["miou"] = [round(100 * m, 1) for m in segmentation_miou(average, encode, tokens, scheduler, *held_out)]
            torch.save({"model": model.state_dict(), "average": average.state_dict(), "step": step, "seen": seen,
                        "optimizers": [o.state_dict() for o in optimizers], "spent": time.time() - began},
                       out / ".state.new")
            os.replace(out / ".state.new", out / ".state.pt")
            write(out / "pipeline")
        print(json.dumps(line), flush=True)
        log.write(json.dumps(line) + "\n")
        log.flush()
write(out / "pipeline")
