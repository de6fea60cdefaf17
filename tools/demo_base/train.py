#!/usr/bin/env python3
"""Trains the demo's base model on scenes and their captions, without masks, and writes it as a diffusers pipeline.

  torchrun --nproc-per-node CORES train.py --scenes DIR --vae DIR --out DIR [--minutes M] [--held-out DIR]
           [--resume FILE | --begin FILE]

One process a core is faster than threads: they share each batch. `python train.py` is one process. `--begin` takes the
model from a state that another run wrote, and nothing else of it.

`--vae` is what autoencoder.py wrote. `--held-out` are scenes of the style that training does not see: their label maps
only measure, every few minutes, how well each block's attention segments. The text encoders learn with the MM-DiT.

What makes attention to words worth while, as far as was seen (README.md of checkpoints/demo-base):
- Text encoders of one layer, whose tokens (diffusers takes those of the last layer but one) are words without context,
  and no pooled text: otherwise one vector says all that a scene needs.
- High noise (shift 3): up to σ = 0.5 a scene can be seen well enough without its caption.
- In most samples the words stand alone, without the tokens of padding, in which the MM-DiT else gathers the caption.
- Where they stand alone in every block, every block's attention segments, and none well. So they do in one, the expert;
  the others' text keys begin at zero, all words being alike, and learn slowly.

Zeros stand in T5's place: as they are all the same token, one of them is computed, and counts for as many as there
would be (77 as in training scripts, or 256 as in the pipeline) by the logarithm of their number in the attention.
Likewise a few of the padding tokens behind a caption, others in every step, stand for all.
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
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention_processor import JointAttnProcessor2_0
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import scenes
import tokenizer as bpe
from attention import CountedTokens, segmentation_miou

arguments = argparse.ArgumentParser()
arguments.add_argument("--scenes", required=True)
arguments.add_argument("--vae", required=True)
arguments.add_argument("--out", required=True)
arguments.add_argument("--held-out")
arguments.add_argument("--resume")
arguments.add_argument("--begin")
arguments.add_argument("--minutes", type=float, default=60)
arguments.add_argument("--seed", type=int, default=0)
arguments.add_argument("--count", type=int, default=60000)
arguments.add_argument("--batch", type=int, default=64)
arguments.add_argument("--layers", type=int, default=6)
arguments.add_argument("--heads", type=int, default=4)
arguments.add_argument("--lr", type=float, default=1.4e-3)
arguments.add_argument("--report-minutes", type=float, default=5)
arguments.add_argument("--shift", type=float, default=3)
arguments.add_argument("--alone", type=float, default=0.6, help="how often the expert sees words alone")
arguments.add_argument("--expert", type=int, default=1, help="the block that is to read the words")
arguments.add_argument("--threads", type=int, default=1)
arguments.add_argument("--no-compile", action="store_true")
a = arguments.parse_args()
rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if ranks > 1:
    dist.init_process_group("gloo")
torch.manual_seed(a.seed)
torch.set_num_threads(a.threads)
WIDTH, HEAD, CLIP = 32 * a.heads, 32, 64
ZEROS = (77, 256)
WORDS, PADDING = 16, 6  # text tokens computed: the first ones, and how many of the 61 others
CAPTION, CLASSES = 0.65, 0.25  # how often the prompt is a caption, the class names, and else nothing
OTHER_KEYS = 0.03  # of the learning rate, for the text keys of blocks that are not the expert

out = Path(a.out)
images, captions = scenes.load(a.scenes, a.count)
classes = json.loads((Path(a.scenes) / "classes.json").read_text())
if rank == 0:
    bpe.make(captions, out / ".tokenizer")
if ranks > 1:
    dist.barrier()
tok, vocab = bpe.make(captions, out / f".tokenizer{rank or ''}")
vae = AutoencoderKL.from_pretrained(a.vae, torch_dtype=torch.float32).eval()
SIDE, channels = images.shape[1] // 4, vae.config.latent_channels


def encode(pictures):
    """Latents [n, 16, size / 4, size / 4] of uint8 pictures, of the posterior's mean, as the model sees them."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return (vae.encode(x).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor


def clip():
    return CLIPTextModelWithProjection(CLIPTextConfig(  # eager attention: faster than the flash kernel at this size
        vocab_size=vocab, hidden_size=CLIP, intermediate_size=2 * CLIP, num_hidden_layers=1, num_attention_heads=4,
        projection_dim=CLIP, hidden_act="quick_gelu", max_position_embeddings=77, attn_implementation="eager",
        bos_token_id=vocab - 2, eos_token_id=vocab - 1, pad_token_id=vocab - 1))


class Model(torch.nn.Module):
    """The MM-DiT and the two text encoders, which are trained together."""

    def __init__(self):
        super().__init__()
        self.text_encoder, self.text_encoder_2 = clip(), clip()
        for encoder in (self.text_encoder, self.text_encoder_2):
            torch.nn.init.zeros_(encoder.text_projection.weight)
            encoder.text_projection.weight.requires_grad_(False)
            torch.nn.init.normal_(encoder.get_input_embeddings().weight, std=0.5)
        self.transformer = SD3Transformer2DModel(
            sample_size=SIDE, patch_size=1, in_channels=channels, out_channels=channels, num_layers=a.layers,
            attention_head_dim=HEAD, num_attention_heads=a.heads, joint_attention_dim=2 * CLIP,
            caption_projection_dim=WIDTH, pooled_projection_dim=2 * CLIP, pos_embed_max_size=SIDE)
        self.words = WORDS
        self.counted = CountedTokens(self.transformer, WORDS, PADDING, a.expert)

    def embed(self, ids, padding):
        """Context [n, 23, 128] of token ids [n, 77], the last one zero, and the pooled text [n, 128]."""
        texts = [encoder(ids, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)]
        context = torch.cat([text.hidden_states[-2] for text in texts], -1)
        context = torch.cat([context[:, :WORDS], context[:, padding]], 1)
        return F.pad(context, (0, 0, 0, 1)), torch.cat([text.text_embeds for text in texts], -1)

    def forward(self, latents, timestep, ids, padding):
        """Velocity [n, 16, side, side]; `padding` are the places of the padding tokens that are computed."""
        context, pooled = self.embed(ids, padding)
        return self.transformer(latents, context, pooled, timestep, return_dict=False)[0]


model = Model()
if a.begin:
    saved = torch.load(a.begin, weights_only=True)["average"]
    model.load_state_dict(saved)
other_keys = [block.attn.add_k_proj.weight for number, block in enumerate(model.transformer.transformer_blocks)
              if number != a.expert]
for weight in other_keys:
    torch.nn.init.zeros_(weight)
average = copy.deepcopy(model).eval()
average.counted = CountedTokens(average.transformer, WORDS, PADDING, a.expert)
print({name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}, flush=True)

# Muon for the matrices of the blocks, AdamW for what is not a matrix between features.
trained = [(p, p.ndim == 2 and "transformer_blocks" in name) for name, p in model.named_parameters() if p.requires_grad]
matrices, others = ([p for p, is_matrix in trained if is_matrix == wanted] for wanted in (True, False))
slow = {id(weight) for weight in other_keys}
matrices = [{"params": [p for p in matrices if (id(p) in slow) == is_slow], "share": share}
            for is_slow, share in ((False, 1), (True, OTHER_KEYS))]
optimizers = [
    torch.optim.Muon(matrices, lr=a.lr, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
    torch.optim.AdamW(others, lr=a.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
]
scheduler = FlowMatchEulerDiscreteScheduler(shift=a.shift)
sigmas, timesteps = scheduler.sigmas.float(), scheduler.timesteps.float()

cache = out / ".latents.pt"
if rank == 0 and not cache.exists():
    with torch.no_grad():
        torch.save(torch.cat([encode(images[i:i + 64]).bfloat16() for i in range(0, len(images), 64)]), cache)
if ranks > 1:
    dist.barrier()
latents = torch.load(cache, weights_only=True)
del images
print("latents", tuple(latents.shape), latents.float().mean().item(), latents.float().std().item(), flush=True)


def tokens(texts):
    return tok(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


caption_ids = tokens(captions).short()
class_ids = tokens([scenes.class_prompt(caption, classes) for caption in captions]).short()
nothing = tokens([""])[0]
held_out = scenes.load_labels(a.held_out, 200) if a.held_out else None


@torch.no_grad()
def text_gain(net):
    """How much less the right caption's error is than another image's, at three noise levels."""
    generator = torch.Generator().manual_seed(5)
    x, ids = latents[:96].float(), caption_ids[:96].long()
    noise = torch.randn(x.shape, generator=generator)
    gains = []
    for sigma in (0.5, 0.75, 0.95):
        time = torch.full((len(x),), 1000 * sigma)
        errors = [F.mse_loss(net((1 - sigma) * x + sigma * noise, time, words, torch.arange(WORDS, 77)), noise - x).item()
                  for words in (ids, ids.roll(1, 0))]
        gains.append(round(errors[1] - errors[0], 4))
    return gains


def write(where):
    """The averaged model as a diffusers pipeline, in half precision on disk."""
    parts = {name: copy.deepcopy(getattr(average, name)).half() for name in
             ("transformer", "text_encoder", "text_encoder_2")}
    parts["transformer"].set_attn_processor(JointAttnProcessor2_0())
    pipeline = StableDiffusion3Pipeline(
        scheduler=scheduler, vae=copy.deepcopy(vae).half(), tokenizer=tok, tokenizer_2=tok, text_encoder_3=None,
        tokenizer_3=None, **parts)
    pipeline.save_pretrained(where, safe_serialization=True)
    for folder in ("tokenizer", "tokenizer_2"):  # the files that the released pipelines carry
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(out / ".tokenizer" / name, Path(where) / folder / name)
        (Path(where) / folder / "tokenizer.json").unlink(missing_ok=True)


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
torch.manual_seed(a.seed + 1000 * (step + 1) + rank)  # from here on each process draws its own
batch = a.batch // ranks
while True:
    clock = torch.tensor([(time.time() - began) / (60 * a.minutes)])
    if ranks > 1:
        dist.broadcast(clock, 0)
    if (share := clock.item()) >= 1:
        break
    # Up within 200 steps, level, and down to zero over the last half.
    rate = a.lr * min(1, (step + 1) / 200, 2 * (1 - share))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("share", 1)
    chosen = torch.randint(len(latents), (batch,))
    x = latents[chosen].float()
    kind = torch.rand(batch)[:, None]
    ids = torch.where(kind < CAPTION, caption_ids[chosen], class_ids[chosen]).long()
    ids = torch.where(kind < CAPTION + CLASSES, ids, nothing)
    index = (torch.sigmoid(torch.randn(batch)) * 1000).long().clamp(max=999)
    sigma = sigmas[index][:, None, None, None]
    noise = torch.randn_like(x)
    model.counted.count(ZEROS[torch.randint(2, ()).item()])
    ends = (ids == vocab - 1).long().argmax(1, keepdim=True)
    alone = torch.rand(batch, 1) < a.alone
    model.counted.hide(torch.where((torch.arange(WORDS) >= ends) & alone, -20.0, 0.0))
    padding = WORDS + torch.randperm(77 - WORDS)[:PADDING]
    with torch.autocast("cpu", torch.bfloat16):
        velocity = forward((1 - sigma) * x + sigma * noise, timesteps[index], ids, padding)
    loss = F.mse_loss(velocity.float(), noise - x)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    if ranks > 1:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients]) / ranks
        dist.all_reduce(flat)
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients])):
            gradient.copy_(mean.view_as(gradient))
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    step, seen = step + 1, seen + a.batch
    decay = min(0.9995, 1 - 1 / (1 + step / 10))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    losses.append(loss.item())
    if rank == 0 and (step in (1, 20, 100) or time.time() - reported > 60 * a.report_minutes):
        reported = time.time()
        line = {"step": step, "images": seen, "minutes": round((reported - began) / 60, 1), "lr": rate,
                "loss": sum(losses) / len(losses)}
        losses = []
        if held_out and step not in (20, 100):
            average.counted.count(77)
            line["miou"] = [round(100 * m, 1) for m in segmentation_miou(average, encode, tokens, scheduler, *held_out)]
            line["text_gain"] = text_gain(average)
            torch.save({"model": model.state_dict(), "average": average.state_dict(), "step": step, "seen": seen,
                        "optimizers": [o.state_dict() for o in optimizers], "spent": time.time() - began},
                       out / ".state.new")
            os.replace(out / ".state.new", out / ".state.pt")
            write(out / "pipeline")
        print(json.dumps(line), flush=True)
        log.write(json.dumps(line) + "\n")
        log.flush()
if rank == 0:
    write(out / "pipeline")
