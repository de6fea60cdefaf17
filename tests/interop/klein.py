#!/usr/bin/env python3
"""As flux.py, for FLUX.2-klein: trains a small random model with the built program and compares with diffusers, live.

  cargo build --release
  tests/interop/klein.py [--tiny ../shared/parity/tiny_flux.py] [--binary target/release/seg4diff] [--layer N …] [--seed N]
                         [--max-sequence-length N] [--steps N --shards GLOB --captions F] [--keep DIR]

  image, sharded, effect, logits, probability, peft, comfyui   as in flux.py, with Flux2KleinPipeline
  converter  the ComfyUI export through diffusers' own converter: the image with it
  original   the same adapter in the names of the original checkpoint, read here and by diffusers: both images
  learning   with --steps: the mask loss over the last fifth of a training on --shards, against the first fifth's
Needs torch, diffusers, transformers, peft, pillow (seen: torch 2.15, diffusers 0.42.1, transformers 5.24, peft 0.21.2).
"""
import argparse, io, json, logging, os, sys, tarfile, tempfile
import numpy as np, torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
import compare
from compare import PROMPTS, ROOT, report, run, train_and_export

sys.path.insert(0, f"{ROOT}/tests/fixtures/train_step")
from flux2 import Probe

logging.disable(logging.WARNING)
SIZE, SIGMA, STEPS, DOUBLE, SINGLE = 128, 0.515, 12, 2, 3
SHAPE = ["--double", DOUBLE, "--single", SINGLE, "--heads", 3, "--head-dim", 40]
TARGETS = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_k_proj", "attn.to_qkv_mlp_proj", "attn.to_out",
           "ff.linear_in", "ff_context.linear_out"]


def config(model, work, name, layer, tokens, source, captions, steps, lr):
    os.makedirs(f"{work}/{name}", exist_ok=True)
    open(f"{work}/{name}/config.toml", "w").write(f'''
seed = 5
device = "cpu"
output = "{work}/{name}/run"
[model]
path = "{model}"
dtype = "f32"
text_encoders = ["qwen3"]
max_sequence_length = {tokens}
expert_layers = [{layer}]
[lora]
rank = 4
alpha = 6.0
targets = {json.dumps(TARGETS)}
[data]
format = "sa1b"
source = ["{source}"]
captions = "{captions}"
resolution = {SIZE}
crop = "center"
shuffle_buffer = 8
workers = 2
[optim]
lr = {lr}
lora_lr_scale = 1.0
clip_norm = {"0.0" if steps < 50 else "1.0"}
warmup_steps = 0
[train]
steps = {steps}
batch = 2
accumulate = 1
[checkpoint]
every = 0
''')
    return f"{work}/{name}"


def draw(pipe, latents, tokens):
    """Images as diffusers draws them, of 255."""
    each = [pipe(prompt=prompt, height=SIZE, width=SIZE, num_inference_steps=STEPS, latents=latents[i:i + 1], max_sequence_length=tokens,
                 output_type="np").images[0] for i, prompt in enumerate(PROMPTS)]
    return (np.stack(each) * 255).round()


def drawn(arguments, work, name, model, *more):
    """Images as the program draws them."""
    prompts = [x for prompt in PROMPTS for x in ("--prompt", prompt)]
    run(arguments.binary, "generate", "--model", model, *prompts, "--out", f"{work}/{name}", "--size", SIZE, "--steps", STEPS, "--latents",
        f"{work}/latents.safetensors", "--device", "cpu", "--max-sequence-length", arguments.max_sequence_length, *more)
    return np.stack([np.asarray(Image.open(f"{work}/{name}/{i:06}.png").convert("RGB"), dtype=np.float64) for i in range(len(PROMPTS))])


@torch.no_grad()
def forward(pipe, image, prompt, noise, tokens):
    """The transformer's output on one noised image and prompt."""
    pixels = torch.tensor(np.asarray(image), dtype=torch.float32).permute(2, 0, 1)[None] / 127.5 - 1
    noised = (1 - SIGMA) * pipe._encode_vae_image(pixels, None) + SIGMA * noise
    context, text_ids = pipe.encode_prompt(prompt, max_sequence_length=tokens)
    return pipe.transformer(hidden_states=pipe._pack_latents(noised), timestep=torch.tensor([SIGMA]), encoder_hidden_states=context,
                            txt_ids=text_ids, img_ids=pipe._prepare_latent_ids(noised), return_dict=False)[0]


def original(adapter, file):
    """An adapter in diffusers' names of layers that are not fused, in those of the original checkpoint."""
    names = {".attn.to_out.0.": ".img_attn.proj.", ".ff.linear_in.": ".img_mlp.0.", ".ff_context.linear_out.": ".txt_mlp.2.",
             ".attn.to_qkv_mlp_proj.": ".linear1.", ".attn.to_out.": ".linear2."}
    found = {}
    for key, value in load_file(adapter).items():
        new = key.replace("transformer.single_transformer_blocks.", "diffusion_model.single_blocks.").replace(
            "transformer.transformer_blocks.", "diffusion_model.double_blocks.")
        old = next((name for name in names if name in new), None)
        if old: found[new.replace(old, names[old])] = value
    save_file(found, file, {"format": "pt"})


def learning(arguments, work, model):
    folder = config(model, work, "long", arguments.layer[0], 128, arguments.shards, arguments.captions, arguments.steps, 2e-3)
    run(arguments.binary, "train", "--config", f"{folder}/config.toml")
    lines = [json.loads(line) for line in open(f"{folder}/run/metrics.jsonl")]
    mask = [0.1 * line["focal"] + 0.2 * line["dice"] for line in lines if line.get("dice") is not None]
    fifth = len(mask) // 5
    first, last = np.mean(mask[:fifth]), np.mean(mask[-fifth:])
    report("klein", "learning", last / first, last < 0.95 * first, f"< 0.95 of {first:.4f} in the first fifth of {len(mask)} steps")


def main(arguments, work):
    model, tokens = f"{work}/model", arguments.max_sequence_length
    for out, shards in ((model, []), (f"{work}/sharded", ["--shard-mb", 0.5])):
        run(sys.executable, arguments.tiny, "--out", out, "--variant", "klein", "--seed", arguments.seed, *SHAPE, *shards)
    if arguments.steps:
        learning(arguments, work, model)
    folder = config(model, work, "short", arguments.layer[0], tokens, f"{ROOT}/data/smoke/sa_*.tar", f"{ROOT}/data/smoke/captions.json", 8, 2e-2)
    train_and_export(arguments.binary, folder)
    lora = f"{folder}/run/lora.safetensors"
    torch.manual_seed(arguments.seed + 1)
    channels = json.load(open(f"{model}/transformer/config.json"))["in_channels"]
    latents, noise = torch.randn(len(PROMPTS), channels, SIZE // 16, SIZE // 16), torch.randn(1, channels, SIZE // 16, SIZE // 16)
    save_file({"latents": latents}, f"{work}/latents.safetensors")
    save_file({"noise": noise}, f"{work}/noise.safetensors")

    pipe = Flux2KleinPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    plain, ours = draw(pipe, latents, tokens), drawn(arguments, work, "plain", model)
    report("klein", "image, plain", np.abs(ours - plain).mean(), np.abs(ours - plain).mean() < 0.05, "< 0.05 of 255")
    sharded = drawn(arguments, work, "from_shards", f"{work}/sharded")
    report("klein", "sharded", np.abs(sharded - ours).max(), np.array_equal(sharded, ours), "the same")

    def with_lora(file):
        pipe.load_lora_weights(os.path.dirname(file), weight_name=os.path.basename(file))
        images = draw(pipe, latents, tokens)
        pipe.unload_lora_weights()
        return images

    theirs, ours = with_lora(lora), drawn(arguments, work, "ours", model, "--lora", lora)
    effect, difference = np.abs(theirs - plain).mean(), np.abs(theirs - ours).mean()
    report("klein", "effect", effect, effect > 1, "> 1 of 255")
    report("klein", "image", difference, difference < 0.05, "< 0.05 of 255")
    comfyui = f"{folder}/comfyui.safetensors"
    difference = np.abs(drawn(arguments, work, "comfyui", model, "--lora", comfyui) - ours).mean()
    report("klein", "comfyui", difference, difference < 0.05, "< 0.05 of 255")
    difference = np.abs(with_lora(comfyui) - ours).mean()
    report("klein", "converter", difference, difference < 0.05, "< 0.05 of 255")
    original(lora, f"{work}/original.safetensors")
    difference = np.abs(with_lora(f"{work}/original.safetensors")
                        - drawn(arguments, work, "original", model, "--lora", f"{work}/original.safetensors")).mean()
    report("klein", "original", difference, difference < 0.05, "< 0.05 of 255")

    with tarfile.open(f"{ROOT}/data/smoke/sa_000000.tar") as tar:
        jpeg = next(tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg"))
    image = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((SIZE, SIZE))
    image.save(f"{work}/image.png")
    pipe.load_lora_weights(os.path.dirname(lora), weight_name=os.path.basename(lora))
    for layer in arguments.layer:
        run(arguments.binary, "probe", "--model", model, "--lora", lora, "--image", f"{work}/image.png", "--prompt", PROMPTS[0],
            "--layer", layer, "--out", f"{work}/probe_{layer}", "--size", SIZE, "--sigma", SIGMA, "--noise",
            f"{work}/noise.safetensors", "--device", "cpu", "--max-sequence-length", tokens)
        found = load_file(f"{work}/probe_{layer}/attention.safetensors")
        attention = [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks][layer].attn
        usual, attention.processor = attention.processor, Probe(tokens)
        adapted = forward(pipe, image, PROMPTS[0], noise, tokens)
        for name in ("logits", "probability"):
            expected = getattr(attention.processor, name)[0].transpose(-1, -2).unflatten(-1, (SIZE // 16, SIZE // 16))
            assert found[name].shape == expected.shape, f"{name}: {found[name].shape}, expected {expected.shape}"
            difference = float((found[name] - expected).abs().max() / expected.abs().max())
            report("klein", f"{name} {layer}", difference, difference < 1e-4, "< 1e-4 of the largest")
        attention.processor = usual

    base = Flux2Transformer2DModel.from_pretrained(model, subfolder="transformer")
    pipe.transformer = PeftModel.from_pretrained(base, f"{folder}/peft").base_model.model.eval()
    difference = float((forward(pipe, image, PROMPTS[0], noise, tokens) - adapted).norm() / adapted.norm())
    report("klein", "peft", difference, difference < 1e-5, "< 1e-5")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", default=f"{ROOT}/../shared/parity/tiny_flux.py")
    parser.add_argument("--binary", default=f"{ROOT}/target/release/seg4diff")
    parser.add_argument("--layer", action="append", type=int, help="blocks to probe; the first is the expert")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="folder for everything that is made, instead of a temporary one")
    parser.add_argument("--max-sequence-length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--shards", default=f"{ROOT}/../shared/data/coco128/sa1b/sa_*.tar")
    parser.add_argument("--captions", default=f"{ROOT}/../shared/data/coco128/sa1b/captions.json")
    arguments = parser.parse_args()
    arguments.layer = arguments.layer or [1, 3]
    arguments.binary = os.path.abspath(arguments.binary)
    for path, what in ((arguments.tiny, "--tiny"), (arguments.binary, "--binary")):
        if not os.path.exists(path): sys.exit(f"{what}: no file {path}")
    with tempfile.TemporaryDirectory() as temporary:
        work = os.path.abspath(arguments.keep or temporary)
        os.makedirs(work, exist_ok=True)
        main(arguments, work)
    sys.exit(f"out of bounds: {', '.join(compare.failed)}" if compare.failed else 0)
