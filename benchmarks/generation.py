"""Seconds to write 512 tokens: with our cache, without any, and with transformers.generate on the export.

    python benchmarks/generation.py [--tokens 512] [--batch 1] [--repeat 3]

A randomly initialised model of about 30 M parameters with a context of 1,024 tokens, greedy, float32.
The three take turns in one process; the table has the median of each.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
import transformers

from model.config import ModelConfig
from model.generate import Sampling, generate
from model.hugging_face import class_name, hugging_face_config, hugging_face_weights
from model.transformer import Transformer, count_parameters

VOCABULARY_SIZE, PROMPT_TOKENS = 8192, 16


def build() -> Transformer:
    """Random weights everywhere: a freshly initialised head is zero, and would repeat one token."""
    config = ModelConfig(n_layers=8, d_model=512, n_heads=8, context_length=1024)
    model = Transformer(config, VOCABULARY_SIZE).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
    return model


@torch.inference_mode()
def without_cache(model: Transformer, prompts: list[list[int]], n_tokens: int) -> list[list[int]]:
    """Reads the whole text again for every token."""
    tokens = torch.tensor(prompts)
    for _ in range(n_tokens):
        last = model.lm_head(model.hidden_states(tokens)[:, -1])
        tokens = torch.cat((tokens, last.argmax(-1, keepdim=True)), dim=1)
    return tokens[:, len(prompts[0]) :].tolist()


def with_cache(model: Transformer, prompts: list[list[int]], n_tokens: int) -> list[list[int]]:
    """What `scratchlm generate` does."""
    steps = generate(model, prompts, Sampling(max_tokens=n_tokens, temperature=0), frozenset())
    return [list(row) for row in zip(*steps, strict=True)]  # type: ignore[arg-type]


def main() -> None:
    """Time each and print a table."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--tokens", type=int, default=512, help="tokens to write")
    options.add_argument("--batch", type=int, default=1, help="prompts at once")
    options.add_argument("--repeat", type=int, default=3, help="turns")
    given = options.parse_args()
    model = build()
    stock_config = hugging_face_config(model.config, VOCABULARY_SIZE, 0)
    stock = getattr(transformers, f"{class_name(model.config)}ForCausalLM")(stock_config).eval()
    stock.load_state_dict(hugging_face_weights(model.state_dict(), model.config), strict=False)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(VOCABULARY_SIZE, (given.batch, PROMPT_TOKENS), generator=generator).tolist()

    def with_transformers() -> list[list[int]]:
        tokens = torch.tensor(prompts)
        written = stock.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=given.tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return written[:, PROMPT_TOKENS:].tolist()

    ways: dict[str, Callable[[], list[list[int]]]] = {
        "ours, cached": lambda: with_cache(model, prompts, given.tokens),
        "transformers.generate": with_transformers,
        "ours, without cache": lambda: without_cache(model, prompts, given.tokens),
    }
    with_cache(model, prompts, 8)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers = {}
    for _ in range(given.repeat):
        for name, write in ways.items():
            started = time.perf_counter()
            answers[name] = write()
            seconds[name].append(time.perf_counter() - started)
    same = all(answer == answers["ours, cached"] for answer in answers.values())
    first = statistics.median(seconds["ours, cached"])
    print(
        f"{count_parameters(model) / 1e6:.1f} M parameters, {os.cpu_count()} cores, {given.batch} x {given.tokens} tokens; ",
        end="",
    )
    print("all wrote the same tokens\n" if same else "the tokens differ\n")
    print("| way | median s | tokens a second | times ours |\n|---|---|---|---|")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"| {name} | {median:.2f} | {given.batch * given.tokens / median:.0f} | {median / first:.2f} |")


if __name__ == "__main__":
    main()
