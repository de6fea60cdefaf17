"""Trains the demo's small classifier, whose features the metric FD-demo compares, on scenes of all drawing styles.

    seg4diff prepare scenes --out scenes/train --count 12000 --seed 7001
    seg4diff prepare scenes --out scenes/val --count 4000 --seed 7002 --split val
    seg4diff prepare scenes --out scenes/test-train --count 1000 --seed 7003
    seg4diff prepare scenes --out scenes/test-val --count 1000 --seed 7004 --split val
    python tools/demo_features/train.py --train scenes/train scenes/val --test scenes/test-train scenes/test-val \
        --out checkpoints/demo-features

It tells which objects and backgrounds are in a scene; a label map's labels are the targets. It is only a ruler, so it
sees the style that the demo holds out, too. Writes config.json, model.safetensors and README.md. The same seed, versions
and machine give the same weights. Minutes on one core.

torch 2.15.0, numpy 2.4.6, pillow 13.0.0, safetensors 0.8.0
"""
import argparse, json, pathlib, platform, sys, time

import numpy as np
import PIL
import safetensors
import torch
from PIL import Image
from safetensors.torch import save_file

SEED, SIZE, CHANNELS = 0, 64, [32, 64, 96, 64]
BATCH, EPOCHS, RATE = 128, 10, 4e-3


class Classifier(torch.nn.Module):
    """Convolutions of stride 2, the mean over what is left of the image, and a linear layer."""

    def __init__(self, classes):
        super().__init__()
        sides = zip([3] + CHANNELS, CHANNELS)
        self.convolutions = torch.nn.ModuleList(torch.nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in sides)
        self.classifier = torch.nn.Linear(CHANNELS[-1], classes)

    def features(self, x):
        """Images in [-1, 1], `[batch, 3, height, width]`, to `[batch, length]`."""
        for convolution in self.convolutions:
            x = torch.relu(convolution(x))
        return x.mean((2, 3))

    def forward(self, x):
        return self.classifier(self.features(x))


def scenes(folder):
    """Images as bytes `[scenes, 3, size, size]`, which classes are in each `[scenes, classes]`, and the names."""
    names = json.loads((folder / "classes.json").read_text())
    keys = sorted(json.loads((folder / "captions.json").read_text()))
    images, present = np.empty((len(keys), SIZE, SIZE, 3), np.uint8), np.zeros((len(keys), len(names)), np.float32)
    for i, key in enumerate(keys):
        image = Image.open(folder / "images" / f"{key}.jpg").convert("RGB")
        images[i] = image.resize((SIZE, SIZE), Image.BILINEAR)
        labels = np.unique(np.asarray(Image.open(folder / "labels" / f"{key}.png")))
        present[i, labels[labels < len(names)]] = 1
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(present), names


def average_precision(scores, truth):
    """Mean precision at the rank of each true one."""
    truth = truth[torch.argsort(scores, descending=True)]
    return (truth.cumsum(0) / torch.arange(1, len(truth) + 1))[truth > 0].mean().item()


@torch.no_grad()
def measure(model, images, present):
    """Mean average precision over classes, and the share of right yes-or-no answers."""
    scores = torch.cat([model(batch.float() / 127.5 - 1) for batch in images.split(BATCH)])
    precisions = [average_precision(scores[:, c], present[:, c]) for c in range(present.shape[1])]
    return np.mean(precisions), ((scores > 0) == (present > 0)).float().mean().item(), precisions


def train(images, present):
    torch.manual_seed(SEED)
    model = Classifier(present.shape[1])
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.15)
    loss = torch.nn.BCEWithLogitsLoss()
    for epoch in range(EPOCHS):
        total, order = 0.0, torch.randperm(len(images))
        for chosen in order[: len(order) // BATCH * BATCH].split(BATCH):
            x = images[chosen].float() / 127.5 - 1
            mirrored = torch.rand(len(chosen)) < 0.5
            x[mirrored] = x[mirrored].flip(3)
            value = loss(model(x), present[chosen])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            total += value.item()
        print(f"epoch {epoch + 1}: loss {total / (len(images) // BATCH):.4f}", flush=True)
    return model.eval()


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--train", nargs="+", type=pathlib.Path, required=True, metavar="DIR")
    arguments.add_argument("--test", nargs="+", type=pathlib.Path, required=True, metavar="DIR")
    arguments.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    arguments = arguments.parse_args()
    torch.set_num_threads(1)
    sets = [scenes(folder) for folder in arguments.train]
    names = sets[0][2]
    started = time.process_time()
    model = train(torch.cat([s[0] for s in sets]), torch.cat([s[1] for s in sets]))
    seconds = time.process_time() - started

    rows = []
    for folder in arguments.test:
        images, present, found = scenes(folder)
        assert found == names, f"{folder}: other classes"
        mean, right, precisions = measure(model, images, present)
        worst = min(zip(precisions, names))
        rows.append(f"| {folder.name}, {len(images)} scenes | {100 * mean:.1f} % | {100 * right:.1f} % | "
                    f"{100 * worst[0]:.1f} % ({worst[1]}) |")
        print(rows[-1])
    arguments.out.mkdir(parents=True, exist_ok=True)
    config = {"size": SIZE, "channels": CHANNELS, "classes": names}
    (arguments.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()},
              arguments.out / "model.safetensors")
    cpu = next((line.split(": ", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    (arguments.out / "README.md").write_text(README.format(
        rows="\n".join(rows), length=CHANNELS[-1], seconds=seconds, cpu=cpu or platform.processor(), seed=SEED,
        scenes=sum(len(s[0]) for s in sets), epochs=EPOCHS, parameters=sum(p.numel() for p in model.parameters()),
        python=platform.python_version(), torch=torch.__version__, numpy=np.__version__, pillow=PIL.__version__,
        safetensors=safetensors.__version__))


README = """# demo-features
A classifier of {parameters} weights that tells which objects and backgrounds are in a scene. The {length} values before its last layer
are the features that the metric `FD-demo` compares (`evaluate fid --features`, `[eval] features`). FD-demo and FID share
only the formula: their numbers are not comparable.

Four convolutions 3×3 of stride 2 with ReLU, the mean over the image, a linear layer. `config.json` has its sizes, the
input is 64×64 in [−1, 1] (other sizes are resized as by Pillow's `BILINEAR`), and the keys are those of the PyTorch module in
`tools/demo_features/train.py`, which made it.

On scenes that it was not trained on, of all five drawing styles:

| | mean average precision | right answers | worst class |
| --- | --- | --- | --- |
{rows}

Trained on {scenes} scenes (`prepare scenes`, both splits), {epochs} epochs, seed {seed}, in {seconds:.0f} s of one core's time
({cpu}); Python {python}, torch {torch}, numpy {numpy}, pillow {pillow}, safetensors {safetensors}. The commands stand at
the top of the script.
"""


if __name__ == "__main__":
    sys.exit(main())
