"""What `loader.rs` measures, done with Pillow, numpy and pycocotools in as many processes (torch's DataLoader habit).

python benches/loader.py 'SHARDS' CAPTIONS [RESOLUTION] [WORKERS]
"""
import glob, io, json, multiprocessing, resource, sys, tarfile, time
import numpy as np
from PIL import Image
from pycocotools import mask as coco

shards, captions, resolution, workers = sys.argv[1], sys.argv[2], *[int(a) for a in (sys.argv[3:] + ["1024", "2"])[:2]]


def sample(task):
    path, jpg, js = task
    with open(path, "rb") as f:
        f.seek(jpg[0]); image = Image.open(io.BytesIO(f.read(jpg[1]))).convert("RGB")
        f.seek(js[0]); annotations = json.loads(f.read(js[1]))["annotations"]
    w, h = image.size
    size = (resolution, resolution * h // w) if w < h else (resolution * w // h, resolution)
    left, top = (size[0] - resolution) // 2, (size[1] - resolution) // 2
    box = (left, top, left + resolution, top + resolution)
    rgb = np.asarray(image.resize(size, Image.BILINEAR).crop(box))
    rows = ((2 * (top + np.arange(resolution)) + 1) * h) // (2 * size[1])
    columns = ((2 * (left + np.arange(resolution)) + 1) * w) // (2 * size[0])
    masks = [coco.decode(a["segmentation"])[np.ix_(rows, columns)] for a in annotations]
    masks = sorted((m for m in masks if m.mean() >= 0.005), key=lambda m: -int(m.sum()))[:32]
    return rgb, masks


if __name__ == "__main__":
    tasks = []
    for path in sorted(glob.glob(shards)):
        members = {m.name: (m.offset_data, m.size) for m in tarfile.open(path)}
        tasks += [(path, v, members[k[:-3] + "json"]) for k, v in members.items() if k.endswith("jpg")]
    with multiprocessing.Pool(workers) as pool:
        started, images = time.time(), 0
        while time.time() - started < 15:
            for _ in pool.imap(sample, tasks):
                images += 1
                if time.time() - started > 15:
                    break
        print(f"{images / (time.time() - started):.1f} images/s at {resolution} pixels, {workers} workers")
        pool.terminate()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"peak of the largest worker {usage / 1024:.0f} MiB")
