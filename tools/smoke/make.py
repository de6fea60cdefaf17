#!/usr/bin/env python3
"""Makes what configs/smoke.toml trains on: a tiny random base and a few dozen generated images with masks.

  tools/smoke/make.py [--seed N]        (run in the repository's root)

Writes checkpoints/smoke-base/ (an SD3 pipeline in the diffusers layout, weights random) and data/smoke/ (two SA-1B
shards of coloured shapes on textured ground, and captions.json). The committed files were made with seed 0, python 3.11,
torch 2.15, diffusers 0.42.1, transformers 5.23, numpy 2, pillow 13, pycocotools 2.0; the data are the same bytes again
with the same versions.
"""
import argparse, io, json, os, shutil, tarfile
import numpy as np, torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image, ImageDraw
from pycocotools import mask as run_lengths
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

BASE, DATA = "checkpoints/smoke-base", "data/smoke"
COLOURS = {"red": (205, 50, 45), "green": (50, 160, 70), "blue": (50, 85, 200), "yellow": (230, 200, 50),
           "purple": (140, 70, 170), "white": (240, 240, 235), "orange": (235, 130, 40), "black": (35, 35, 40)}
SHAPES = ("circle", "square", "triangle", "star", "bar")
GROUNDS = {"sand": (200, 180, 140), "grass": (110, 150, 90), "stone": (140, 140, 145), "water": (110, 150, 180)}
WORDS = (*COLOURS, *SHAPES, *GROUNDS, "a", "an", "and", "on", "the", "is", "photo", "of", "largest", "there", "are", "two",
         "three", "four", "shapes")
rng = np.random.default_rng()


def randomise(module):
    """Random weights, scaled so that activations stay in a useful range, biases and norms included."""
    for name, p in module.named_parameters():
        with torch.no_grad():
            if p.ndim >= 2:
                p.normal_(0, (1.0 / p[0].numel()) ** 0.5)
            elif "norm" in name and name.endswith("weight"):
                p.uniform_(0.7, 1.3)
            else:
                p.normal_(0, 0.1)
    return module.eval()


def tokenizer(folder):
    """Byte-level BPE over WORDS in CLIP's file format; returns the size of the vocabulary."""
    # the 256 byte symbols: printable bytes stand for themselves, the rest from U+0100 on
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    vocab = [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]
    vocab += [v + "</w>" for v in vocab]
    merges = []
    for word in WORDS:
        parts = list(word[:-1]) + [word[-1] + "</w>"]
        while len(parts) > 1:
            if (parts[0], parts[1]) not in merges: merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1]] + parts[2:]
            if parts[0] not in vocab: vocab.append(parts[0])
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/vocab.json", "w") as f: json.dump({t: i for i, t in enumerate(vocab)}, f)
    with open(f"{folder}/merges.txt", "w") as f: f.write("#version: 0.2\n" + "".join(f"{x} {y}\n" for x, y in merges))
    return len(vocab)


def clip(width, vocab, act):
    return randomise(CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=width, hidden_act=act, max_position_embeddings=77, bos_token_id=vocab - 2, eos_token_id=vocab - 1,
        pad_token_id=vocab - 1)))


def make_base():
    shutil.rmtree(BASE, ignore_errors=True)
    files = f"{BASE}/tokenizer"
    vocab = tokenizer(files)
    clip_tokenizer = CLIPTokenizer(f"{files}/vocab.json", f"{files}/merges.txt", model_max_length=77)
    transformer = randomise(SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=3, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=56,
        pos_embed_max_size=16))
    vae = randomise(AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=16, block_out_channels=(8, 8, 16, 16), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=4,
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5305, sample_size=128))
    StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae,
        text_encoder=clip(24, vocab, "quick_gelu"), tokenizer=clip_tokenizer, text_encoder_2=clip(32, vocab, "gelu"),
        tokenizer_2=clip_tokenizer, text_encoder_3=None, tokenizer_3=None).save_pretrained(BASE)
    for name in ("tokenizer", "tokenizer_2"):       # as the released pipelines: two files and no tokenizer.json
        tokenizer(f"{BASE}/{name}")
        if os.path.exists(f"{BASE}/{name}/tokenizer.json"): os.remove(f"{BASE}/{name}/tokenizer.json")


def texture(height, width, colour):
    """A ground of soft noise at two scales and slanted stripes."""
    y, x = np.mgrid[:height, :width]
    coarse = np.kron(rng.normal(0, 14, (height // 16 + 1, width // 16 + 1)), np.ones((16, 16)))[:height, :width]
    stripes = 9 * np.sin((x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)) * rng.uniform(0.2, 0.9))
    return np.asarray(colour) + (coarse + stripes + rng.normal(0, 4, (height, width)))[..., None]


def outline(shape, height, width):
    """The shape as a mask, somewhere in the image, at some size and angle."""
    size = rng.uniform(0.14, 0.3) * min(height, width)
    centre = np.array([rng.uniform(size, width - size), rng.uniform(size, height - size)])
    if shape == "circle":
        angles, radii = np.linspace(0, 2 * np.pi, 60), np.full(60, size)
    elif shape == "star":
        angles, radii = np.arange(10) * np.pi / 5, np.where(np.arange(10) % 2, 0.45, 1.15) * size
    elif shape == "bar":
        angles, radii = np.array([0.3, np.pi - 0.3, np.pi + 0.3, -0.3]), np.full(4, 1.2 * size)
    else:
        corners = {"square": 4, "triangle": 3}[shape]
        angles, radii = np.arange(corners) * 2 * np.pi / corners, np.full(corners, 1.15 * size)
    angles = angles + rng.uniform(0, 2 * np.pi)
    points = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).polygon([tuple(p) for p in points], fill=255)
    return np.asarray(image) > 0


def make_image(number):
    """(JPEG bytes, SA-1B annotation, caption) of one image."""
    width, height = ((128, 128), (128, 96), (96, 128), (112, 112))[number % 4]
    ground = str(rng.choice(list(GROUNDS)))
    pixels = texture(height, width, GROUNDS[ground])
    drawn = []
    for shape in rng.choice(SHAPES, int(rng.integers(2, 5))):
        colour = str(rng.choice(list(COLOURS)))
        mask = outline(shape, height, width)
        pixels[mask] = (np.asarray(COLOURS[colour]) + rng.normal(0, 6, (height, width, 1)))[mask]
        drawn = [(name, m & ~mask) for name, m in drawn] + [(f"{colour} {shape}", mask)]   # the last lies on top
    drawn = [(name, m) for name, m in drawn if m.sum() > 0.01 * width * height]
    free = ~np.any([m for _, m in drawn], axis=0)
    annotations = []
    for index, (_, mask) in enumerate(drawn + [(ground, free)]):
        code = run_lengths.encode(np.asfortranarray(mask.astype(np.uint8)))
        annotations.append({
            "id": 100 * number + index, "segmentation": {"size": [height, width], "counts": code["counts"].decode()},
            "area": int(mask.sum()), "bbox": run_lengths.toBbox(code).tolist(), "predicted_iou": 0.95,
            "stability_score": 0.97, "crop_box": [0, 0, width, height], "point_coords": [[0.0, 0.0]]})
    names = [("an " if name[0] in "aeiou" else "a ") + name for name, _ in drawn]
    largest = max(drawn, key=lambda d: d[1].sum())[0]
    listed = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    caption = f"A photo of {listed} on {ground}. The largest is the {largest}. There are shapes on the {ground}."
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    about = {"image_id": number, "width": width, "height": height, "file_name": f"sa_{number}.jpg"}
    return buffer.getvalue(), {"image": about, "annotations": annotations}, caption


def make_data(images=36, shards=2):
    shutil.rmtree(DATA, ignore_errors=True)
    os.makedirs(DATA)
    captions = {}
    for shard in range(shards):
        with tarfile.open(f"{DATA}/sa_{shard:06}.tar", "w") as tar:
            for number in range(1 + shard * images // shards, 1 + (shard + 1) * images // shards):
                jpeg, annotation, captions[f"sa_{number}"] = make_image(number)
                for suffix, content in (("jpg", jpeg), ("json", json.dumps(annotation).encode())):
                    member = tarfile.TarInfo(f"./sa_{number}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    with open(f"{DATA}/captions.json", "w") as f: json.dump(captions, f, indent=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    make_base()
    make_data()
