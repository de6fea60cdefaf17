"""The joint attention of the training script, and how well each block's attention segments."""
import math

import numpy as np
import torch
import torch.nn.functional as F


class Attention(torch.autograd.Function):
    """Softmax attention with a bias on the keys, its matrix kept for the backward pass.

    For a few hundred tokens this is twice as fast on a CPU as the flash kernel, which computes the matrix again.
    """

    @staticmethod
    def forward(ctx, q, k, v, bias):
        scores = q @ k.transpose(2, 3)
        p = (scores.float() * q.shape[-1] ** -0.5 + bias).softmax(-1).to(q.dtype)
        ctx.save_for_backward(q, k, v, p)
        return p @ v

    @staticmethod
    def backward(ctx, grad):
        q, k, v, p = ctx.saved_tensors
        grad_p, wide = (grad @ v.transpose(2, 3)).float(), p.float()
        grad_scores = wide * (grad_p - (grad_p * wide).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
        grad_scores = grad_scores.to(q.dtype)
        return grad_scores @ k, grad_scores.transpose(2, 3) @ q, p.transpose(2, 3) @ grad, None


class Processor:
    """diffusers' `JointAttnProcessor2_0` with a bias on the keys; it keeps image queries and keys where asked."""

    def __init__(self, shared, hides):
        self.shared, self.hides = shared, hides
        self.kept = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        def heads(x):
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        image, text = hidden_states, encoder_hidden_states
        q, k, v = (torch.cat([heads(a(image)), heads(b(text))], 2) for a, b in
                   ((attn.to_q, attn.add_q_proj), (attn.to_k, attn.add_k_proj), (attn.to_v, attn.add_v_proj)))
        bias = self.shared.bias(q.shape[2], self.hides)
        if self.shared.keep:
            self.kept = q[:, :, :image.shape[1]], k
        out = Attention.apply(q, k, v, bias)
        out = out.transpose(1, 2).flatten(2)
        image, text = out[:, :image.shape[1]], out[:, image.shape[1]:]
        image = attn.to_out[0](image)
        return (image, text) if attn.context_pre_only else (image, attn.to_add_out(text))


class CountedTokens(torch.nn.Module):
    """Lets text tokens count for several in the attention, by the logarithm of how many as a bias on the keys.

    The last one, which is zero, stands for the zeros in T5's place. Of 77 CLIP tokens either all are there, or the
    first `words` and `padding` others, which stand for the rest. What `hide` hides, only the block `expert` does not see.
    """

    def __init__(self, transformer, words, padding, expert):
        super().__init__()
        image = (transformer.config.sample_size // transformer.config.patch_size) ** 2
        self.image = image
        few = torch.zeros(1, 1, 1, image + words + padding + 1)
        few[..., -1 - padding:-1] = math.log((77 - words) / padding)
        self.register_buffer("few", few, persistent=False)
        self.register_buffer("all", torch.zeros(1, 1, 1, image + 78), persistent=False)
        self.keep = False
        self.processors = [Processor(self, number == expert) for number in range(len(transformer.transformer_blocks))]
        for block, processor in zip(transformer.transformer_blocks, self.processors):
            block.attn.set_processor(processor)

    def count(self, zeros):
        for bias in (self.few, self.all):
            bias[..., -1] = math.log(zeros)

    def hide(self, hidden):
        """Adds a bias `[batch, words]` to the words of the training's short sequence; where the last is hidden, so are
        padding and zeros."""
        image = self.image
        bias = self.few.expand(len(hidden), 1, 1, -1).clone()
        bias[:, 0, 0, image:image + hidden.shape[1]] += hidden
        bias[:, 0, 0, image + hidden.shape[1]:] += hidden[:, -1:]
        self.shown = bias

    def bias(self, tokens, hides):
        if tokens != self.few.shape[-1]:
            return self.all
        return self.shown if hides else self.few


@torch.no_grad()
def segmentation_miou(model, encode, tokens, scheduler, images, labels, classes, batch=50):
    """mIoU of every block: the prompt is the classes present, σ as at the eighth of 28 steps from the end."""
    scheduler.set_timesteps(28)
    sigma, timestep = scheduler.sigmas[20], scheduler.timesteps[-8]
    scheduler.set_timesteps(1000)
    blocks = len(model.transformer.transformer_blocks)
    intersections, unions = np.zeros((blocks, len(classes))), np.zeros((blocks, len(classes)))
    generator = torch.Generator().manual_seed(0)
    model.counted.keep = True
    for start in range(0, len(images), batch):
        truth = labels[start:start + batch]
        present = [np.unique(label) for label in truth]
        ids = tokens([" ".join(classes[c] for c in found) for found in present])
        latents = encode(images[start:start + batch])
        noise = torch.randn(latents.shape, generator=generator)
        model((1 - sigma) * latents + sigma * noise, timestep.expand(len(truth)), ids, torch.arange(model.words, 77))
        for block, processor in enumerate(model.counted.processors):
            q, k = processor.kept
            scores = q.float() @ k.float().transpose(2, 3) / q.shape[-1] ** 0.5 + model.counted.bias(k.shape[2], False)
            attention = scores.softmax(-1).mean(1)
            side = math.isqrt(q.shape[2])
            for i, found in enumerate(present):
                # After the start token every class name is one token.
                maps = attention[i][:, side * side + 1:side * side + 1 + len(found)].T.reshape(1, -1, side, side)
                maps = F.interpolate(maps, size=truth.shape[1:], mode="bilinear")[0]
                predicted = found[maps.argmax(0).numpy()]
                for c in found:
                    intersections[block, c] += ((predicted == c) & (truth[i] == c)).sum()
                    unions[block, c] += ((predicted == c) | (truth[i] == c)).sum()
    model.counted.keep = False
    return [float((i[u > 0] / u[u > 0]).mean()) for i, u in zip(intersections, unions)]
