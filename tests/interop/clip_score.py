#!/usr/bin/env python3
"""Compares `evaluate clip-score` with transformers' CLIPModel on a folder of random pictures of many sizes.

  cargo build --release
  tests/interop/clip_score.py --clip DIR [--count 12] [--seed N] [--binary target/release/seg4diff]

DIR is a CLIP model in the layout of transformers; tests/fixtures/clip/model is a small random one. Prints both mean
cosines, with Pillow's image processor (1e-5 is asked) and torchvision's (1e-4); exit status 1 if out of bounds. Needs
torch, transformers, pillow, torchvision (seen: torch 2.15, transformers 5.23, pillow 13).
"""
import argparse, json, subprocess, sys, tempfile
from pathlib import Path
import numpy as np, torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

ROOT = Path(__file__).resolve().parents[2]
arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("--clip", default=ROOT / "tests/fixtures/clip/model")
arguments.add_argument("--count", type=int, default=12)
arguments.add_argument("--seed", type=int, default=0)
arguments.add_argument("--binary", default=ROOT / "target/release/seg4diff")
a = arguments.parse_args()
rng = np.random.default_rng(a.seed)
words = "a the red blue circle square cat dog on under grass sky two boat café".split()
with tempfile.TemporaryDirectory() as work:
    captions = {}
    for index in range(a.count):
        width, height = (int(x) for x in rng.integers(20, 400, 2))
        coarse = Image.fromarray((rng.random((6, 5, 3)) * 255).astype(np.uint8)).resize((width, height), Image.BICUBIC)
        pixels = np.clip(np.asarray(coarse) + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(f"{work}/{index:03}.png")
        captions[f"{index:03}"] = " ".join(rng.choice(words, rng.integers(1, 90)))
    json.dump(captions, open(f"{work}/captions.json", "w"))
    subprocess.run([str(x) for x in (a.binary, "evaluate", "clip-score", "--clip", a.clip, "--images", work, "--captions",
                    f"{work}/captions.json", "--batch", 5, "--json", f"{work}/scores.json", "--device", "cpu")],
                   check=True, capture_output=True)
    ours = json.load(open(f"{work}/scores.json"))
    model, tokenizer = CLIPModel.from_pretrained(a.clip), CLIPTokenizer.from_pretrained(a.clip)
    failed = False
    for processor, limit in ((CLIPImageProcessorPil, 1e-5), (CLIPImageProcessor, 1e-4)):
        cosines = []
        for key, caption in captions.items():
            ids = tokenizer([caption], padding="max_length", truncation=True, max_length=77, return_tensors="pt")
            pixels = processor.from_pretrained(a.clip)(images=Image.open(f"{work}/{key}.png"), return_tensors="pt").pixel_values
            with torch.no_grad():
                out = model(**ids, pixel_values=pixels)
            cosines.append(float((out.image_embeds * out.text_embeds).sum()))
        theirs = {"cosine": np.mean(cosines), "clip_score": 2.5 * np.mean(np.maximum(cosines, 0))}
        for key, value in theirs.items():
            apart = abs(ours[key] - value)
            failed |= apart > limit * (2.5 if key == "clip_score" else 1)
            print(f"{processor.__name__} {key}: {ours[key]:.7f}, {value:.7f}, {apart:.2g} apart")
sys.exit(int(failed))
