"""A tokenizer of the CLIP kind whose words are the captions': byte-level BPE, every word one token."""
import json
from collections import Counter
from pathlib import Path

from transformers import CLIPTokenizer


def symbols():
    """The 256 symbols of byte-level BPE: printable bytes stand for themselves, the rest from U+0100 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(rest))]


def train_merges(words):
    """Merges the most frequent pair until every word is one token; ties go to the first in the alphabet."""
    splits = {word: [*word[:-1], word[-1] + "</w>"] for word in sorted(words)}
    merges = []
    while pairs := Counter(pair for word, parts in splits.items() for pair in zip(parts, parts[1:])):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for parts in splits.values():
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == best:
                    parts[i:i + 2] = ["".join(best)]
                i += 1
    return merges


def make(texts, folder):
    """Writes vocab.json and merges.txt; the tokenizer and the number of its tokens."""
    words = {word for text in texts for word in text.replace(",", " ").split()}
    merges = train_merges(words)
    vocab = symbols()
    vocab += [symbol + "</w>" for symbol in vocab]
    vocab += list(dict.fromkeys("".join(pair) for pair in merges))
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    assert all(len(tokenizer(word).input_ids) == 3 for word in words)
    return tokenizer, len(vocab)
