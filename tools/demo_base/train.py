#!/usr/bin/env python3
"""Trains the demo's base model on scenes and their captions, without masks, and writes it as a diffusers pipeline.

  train.py --scenes DIR --vae DIR --out DIR [--minutes M] [--seed N] [--held-out DIR] [--resume FILE]

`--vae` is what autoencoder.py wrote. `--held-out` are scenes of the style that training does not see: their label maps
only measure, every few minutes, how well each block's attention segments. The text encoders learn with the MM-DiT.
Zeros stand in T5's place: as they are all the same token, one of them is computed, and counts for as many as there
would be (77 as in training scripts, or 256 as in the pipeline) by the logarithm of their number in the attention.
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
from attention import CountedZeros, segmentation_miou

arguments = argparse.ArgumentParser()
arguments.add_argument("--scenes", required=True)
arguments.add_argument("--vae", required=True)
arguments.add_argument("--out", required=True)
arguments.add_argument("--held-out")
arguments.add_argument("--resume")
arguments.add_argument("--minutes", type=float, default=60)
arguments.add_argument("--seed", type=int, default=0)
arguments.add_argument("--count", type=int, default=60000)
arguments.add_argument("--batch", type=int, default=64)
arguments.add_argument("--layers", type=int, default=6)
arguments.add_argument("--heads", type=int, default=4)
arguments.add_argument("--lr", type=float, default=2e-3)
arguments.add_argument("--drop-until", type=float, default=0.5, help="share of the time with half of the tokens")
arguments.add_argument("--report-minutes", type=float, default=5)
arguments.add_argument("--threads", type=int, default=2)
arguments.add_argument("--no-compile", action="store_true")
a = arguments.parse_args()
torch.manual_seed(a.seed)
torch.set_num_threads(a.threads)
WIDTH, HEAD, CLIP = 32 * a.heads, 32, 64
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
    return CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=vocab, hidden_size=CLIP, intermediate_size=2 * CLIP, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=CLIP, hidden_act="quick_gelu", max_position_embeddings=77,
        bos_token_id=vocab - 2, eos_token_id=vocab - 1, pad_token_id=vocab - 1))


class Model(torch.nn.Module):
    """The MM-DiT and the two text encoders, which are trained together."""

    def __init__(self):
        super().__init__()
        self.text_encoder, self.text_encoder_2 = clip(), clip()
        self.transformer = SD3Transformer2DModel(
            sample_size=size, patch_size=4, in_channels=3, out_channels=3, num_layers=a.layers,
            attention_head_dim=HEAD, num_attention_heads=a.heads, joint_attention_dim=2 * CLIP,
            caption_projection_dim=WIDTH, pooled_projection_dim=2 * CLIP, pos_embed_max_size=size // 4)
        self.zeros = CountedZeros(self.transformer)

    def embed(self, ids):
        """Context [n, 78, 128] of token ids [n, 77], the last one zero, and the pooled text [n, 128]."""
        texts = [encoder(ids, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)]
        context = torch.cat([text.hidden_states[-2] for text in texts], -1)
        return F.pad(context, (0, 0, 0, 1)), torch.cat([text.text_embeds for text in texts], -1)

    def forward(self, latents, timestep, ids, kept=None):
        """Velocity as patches [n, tokens, 4 · 4 · 3]; of the image tokens `kept` [n, tokens] alone, where given.

        What `SD3Transformer2DModel.forward` does, but for leaving tokens out.
        """
        context, pooled = self.embed(ids)
        net = self.transformer
        hidden, context = net.pos_embed(latents), net.context_embedder(context)
        embedded = net.time_text_embed(timestep, pooled)
        if kept is not None:
            hidden = take(hidden, kept)
        for block in net.transformer_blocks:
            context, hidden = block(hidden_states=hidden, encoder_hidden_states=context, temb=embedded)
        return net.proj_out(net.norm_out(hidden, embedded))


def take(tokens_of, kept):
    return tokens_of.gather(1, kept[..., None].expand(-1, -1, tokens_of.shape[-1]))


def patches(images_of):
    """[n, 3, size, size] as [n, tokens, 4 · 4 · 3], in the order of the model's output."""
    side = images_of.shape[-1] // 4
    return images_of.unflatten(3, (side, 4)).unflatten(2, (side, 4)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


model = Model()
average = copy.deepcopy(model).eval()
average.zeros = CountedZeros(average.transformer)
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
    return tok(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


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
    model.zeros.count(ZEROS[torch.randint(2, ()).item()])
    target, kept = patches(noise - x), None
    if share < a.drop_until:
        kept = torch.rand(a.batch, target.shape[1]).argsort(1)[:, :target.shape[1] // 2]
        target = take(target, kept)
    with torch.autocast("cpu", torch.bfloat16):
        velocity = forward((1 - sigma) * x + sigma * noise, timesteps[index], ids, kept)
    loss = F.mse_loss(velocity.float(), target)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
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
            average.zeros.count(77)
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
