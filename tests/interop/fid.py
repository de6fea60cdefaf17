#!/usr/bin/env python3
"""Compares `evaluate fid` with pytorch-fid on two folders of random images of different sizes, live.

  cargo build --release
  tests/interop/fid.py [--binary target/release/seg4diff] [--images 24] [--seed N] [--threads 2]

The network has random weights of that seed. Prints a line a figure; exit status 1 if one is out of bounds:
  fid        `evaluate fid` and pytorch-fid on the folders: relative difference, < 1e-3
  npz        the same with pytorch-fid's statistics (--save-stats) in place of the real images
  back       pytorch-fid with the statistics that `--save-real` writes
  kid        `evaluate fid` and NumPy on pytorch-fid's features: relative difference, < 1e-3
  features   mean and covariance of `--save-real` against pytorch-fid's: share of the largest value, < 1e-4
and images a second of both, this machine, these threads.
Needs torch, torchvision, pytorch-fid, scipy (seen: torch 2.15, torchvision 0.29.2, pytorch-fid 0.3.0, scipy 1.17.1).
"""
import argparse, json, os, pathlib, subprocess, sys, tempfile, time, warnings

import numpy as np
import pytorch_fid.fid_score as score
import pytorch_fid.inception as fid
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

warnings.filterwarnings("ignore")
ROOT = pathlib.Path(__file__).resolve().parents[2]
failed = []


def report(what, value, bound):
    good = value < bound
    print(f"{what:10} {value:10.3g}   {'ok' if good else 'OUT OF BOUNDS'} (< {bound})", flush=True)
    if not good: failed.append(what)


def network(seed, file):
    """pytorch-fid's network with random weights, and the same weights in a file."""
    fid.load_state_dict_from_url = lambda *_, **__: None
    load = torchvision.models.inception.Inception3.load_state_dict
    torchvision.models.inception.Inception3.load_state_dict = lambda self, state: state and load(self, state)
    generator = torch.Generator().manual_seed(seed)
    inception = fid.fid_inception_v3()
    state = inception.state_dict()
    for name, value in state.items():
        if value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif name.endswith(("bn.weight", "running_var")):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.ndim:
            value.normal_(0, 0.3, generator=generator)
    save_file(state, file)
    fid.fid_inception_v3 = lambda: inception
    return fid.InceptionV3([3]).eval()


def images(folder, count, noise, sizes, generator):
    folder.mkdir()
    for index in range(count):
        width, height = generator.integers(*sizes, size=2)
        small = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(small).resize((width, height), Image.BICUBIC), dtype=float)
        picture = np.clip(picture + generator.normal(0, noise, picture.shape), 0, 255).astype(np.uint8)
        name = folder / f"{index:03}.{'jpg' if index % 3 == 0 else 'png'}"
        Image.fromarray(picture).save(name, **({"quality": 85} if index % 3 == 0 else {}))


def kid(x, y):
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
    own = lambda a: (kernel(a, a).sum() - np.trace(kernel(a, a))) / (len(a) * (len(a) - 1))
    return own(x) + own(y) - 2 * kernel(x, y).mean()


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--binary", default=str(ROOT / "target/release/seg4diff"))
    arguments.add_argument("--images", type=int, default=24)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--threads", type=int, default=2)
    arguments = arguments.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model = network(arguments.seed, folder / "inception.safetensors")
        images(folder / "real", arguments.images, 20, (40, 400), generator)
        images(folder / "made", arguments.images * 3 // 4, 40, (64, 300), generator)

        def ours(real, *more):
            command = [arguments.binary, "evaluate", "fid", "--real", real, "--generated", "made", "--device", "cpu",
                       "--inception", "inception.safetensors", "--json", "scores.json", *more]
            environment = {**os.environ, "RAYON_NUM_THREADS": str(arguments.threads)}
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            if done.returncode: sys.exit(done.stderr)
            return json.loads((folder / "scores.json").read_text())

        features, seconds = {}, 0
        for part in ("real", "made"):
            files = sorted(f for e in ("jpg", "png") for f in (folder / part).glob(f"*.{e}"))
            started = time.time()
            features[part] = score.get_activations(files, model, 1, 2048, "cpu", 0)
            seconds += time.time() - started
        statistics = {part: (f.mean(0), np.cov(f, rowvar=False)) for part, f in features.items()}
        distance = lambda a, b: score.calculate_frechet_distance(*a, *b)
        expected = distance(statistics["real"], statistics["made"])
        started = time.time()
        found = ours("real", "--save-real", "ours.npz")
        ours_seconds = time.time() - started
        print(f"fid {expected:.6f}, ours {found['fid']:.6f}; kid {kid(features['real'], features['made']):.6g}, "
              f"ours {found['kid']:.6g}")
        report("fid", abs(found["fid"] / expected - 1), 1e-3)
        np.savez_compressed(folder / "theirs.npz", mu=statistics["real"][0], sigma=statistics["real"][1])
        report("npz", abs(ours("theirs.npz")["fid"] / expected - 1), 1e-3)
        saved = np.load(folder / "ours.npz")
        report("back", abs(distance((saved["mu"], saved["sigma"]), statistics["made"]) / expected - 1), 1e-3)
        report("kid", abs(found["kid"] / kid(features["real"], features["made"]) - 1), 1e-3)
        report("features", max(abs(a - b).max() / abs(b).max() for a, b in zip((saved["mu"], saved["sigma"]),
                                                                                  statistics["real"])), 1e-4)
        count = len(features["real"]) + len(features["made"])
        print(f"{count} images on {arguments.threads} threads: pytorch-fid {count / seconds:.2f} images/s (features "
              f"alone, batches of 1), ours {count / ours_seconds:.2f} (the whole command)")
    sys.exit(f"out of bounds: {', '.join(failed)}" if failed else 0)


main()
