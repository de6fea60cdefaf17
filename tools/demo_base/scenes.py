"""Reads what `seg4diff prepare scenes` wrote: images, captions and, to measure with, label maps."""
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def load(folder, count=None):
    """Images [n, size, size, 3] uint8 and captions, from the shards, in their order. Masks are not read."""
    folder = Path(folder)
    captions = json.loads((folder / "captions.json").read_text())
    images, texts = [], []
    for shard in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    images.append(np.asarray(Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB")))
                    texts.append(captions[member.name[:-4]])
                    if len(images) == count:
                        return np.stack(images), texts
    return np.stack(images), texts


def load_labels(folder, count=None):
    """Images, label maps [n, size, size] and the class list; for measuring only."""
    folder = Path(folder)
    classes = json.loads((folder / "classes.json").read_text())
    files = sorted((folder / "images").glob("*.jpg"))[:count]
    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    labels = np.stack([np.asarray(Image.open(folder / "labels" / f"{file.stem}.png")) for file in files])
    return images, labels, classes


def class_prompt(caption, classes):
    """The class names that a caption speaks of, in the order of the labels, as open-vocabulary prompts have them."""
    words = set(caption.replace(",", " ").split())
    return " ".join(name for name in classes if name in words)
