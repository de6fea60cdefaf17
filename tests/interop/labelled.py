"""What segmentation.py, unsupervised.py and analyze.py share: their arguments, the images, the noise, the program's run."""
import argparse, json, logging, os, subprocess, sys, time
import torch
from safetensors.torch import save_file

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, f"{ROOT}/tests/fixtures/segmentation")
import reference

logging.disable(logging.WARNING)


def parser(doc):
    coco = f"{ROOT}/../shared/data/coco128/coco"
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--images", default=f"{coco}/images/val2017")
    parser.add_argument("--labels", default=f"{coco}/labels/val2017")
    parser.add_argument("--classes", default=f"{coco}/classes.json")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--ignore", default="0,255")
    parser.add_argument("--limit", type=int, default=1 << 30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--binary", default=f"{ROOT}/target/release/seg4diff")
    return parser


class Data:
    """The arguments' data set as diffusers' side reads it, the pipeline, and the noise that both sides take."""

    def __init__(self, arguments, lora=None):
        torch.set_num_threads(1)
        torch.manual_seed(arguments.seed)
        self.arguments, self.pipe = arguments, reference.load(arguments.model, lora)
        side = arguments.size // self.pipe.vae_scale_factor
        self.noise = torch.randn(1, self.pipe.transformer.config.in_channels, side, side)
        stems = {os.path.splitext(f)[0]: f for f in os.listdir(arguments.images)
                 if f.lower().endswith((".jpg", ".jpeg", ".png"))}
        self.keys = sorted(stems)[:arguments.limit]
        self.files = [f"{arguments.images}/{stems[k]}" for k in self.keys], [f"{arguments.labels}/{k}.png" for k in self.keys]
        self.classes = reference.read_classes(arguments.classes), [int(i) for i in arguments.ignore.split(",")]

    def run(self, work, *command):
        """The program's scores, and how long it took; `work` is a folder for its files."""
        a = self.arguments
        save_file({"noise": self.noise}, f"{work}/noise.safetensors")
        command = [os.path.abspath(a.binary), *command, "--model", a.model, "--images", a.images, "--labels", a.labels,
                   "--classes", a.classes, "--ignore", a.ignore, "--size", a.size, "--noise", f"{work}/noise.safetensors",
                   "--json", f"{work}/scores.json", "--device", "cpu", "--dtype", "f32"]
        if a.limit < 1 << 30: command += ["--limit", a.limit]
        start = time.time()
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        if done.returncode: sys.exit(f"{command}\nstatus {done.returncode}\n{done.stderr}")
        return json.load(open(f"{work}/scores.json")), time.time() - start
