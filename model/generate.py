"""Generation: sampling with a key/value cache, several prompts at once, and text as it comes."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from model.base_config import Config
from model.transformer import KeyValueCache, Transformer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Sampling(Config):
    """How the next token is chosen, and when to stop."""

    max_tokens: int = Field(100, ge=1, description="Most tokens to write, in tokens.")
    temperature: float = Field(
        0.8, ge=0, description="Divides the logits; 0 takes the likeliest token each time."
    )
    top_k: int = Field(50, ge=0, description="Choose among this many likeliest tokens; 0 among all.")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Choose among the likeliest tokens that have this probability together (nucleus).",
    )
    min_p: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Choose among tokens with at least this share of the likeliest one's probability.",
    )
    repetition_penalty: float = Field(
        1.0,
        gt=0,
        description="Divides positive and multiplies negative logits of tokens that are there already; 1 changes nothing.",
    )
    stop: tuple[str, ...] = Field((), description="Texts at which to stop; they are not part of the answer.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the choice.")


_LEAST_TEMPERATURE = 1e-6
"""Below it the likeliest token is chosen in any case, and logits would become infinite."""


def filter_logits(logits: Tensor, seen: Tensor, sampling: Sampling) -> Tensor:
    """Logits (V,) of one position, with what may not be chosen at minus infinity.

    In the order of `transformers`: repetition penalty (Keskar et al. 2019, arXiv 1909.05858),
    temperature, top-k, top-p (Holtzman et al. 2020, arXiv 1904.09751), min-p (arXiv 2407.01082).

    Args:
        logits: float32.
        seen: ids of the prompt and of what was written.
    """
    if sampling.repetition_penalty != 1:
        old = logits[seen]
        logits = logits.index_put(
            (seen,),
            torch.where(old < 0, old * sampling.repetition_penalty, old / sampling.repetition_penalty),
        )
    if sampling.temperature == 0:
        return logits
    logits = logits / max(sampling.temperature, _LEAST_TEMPERATURE)
    if 0 < sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1:
        ascending, order = logits.sort()
        unlikely = ascending.softmax(0).cumsum(0) <= 1 - sampling.top_p
        unlikely[-1] = False
        logits = logits.masked_fill(torch.zeros_like(unlikely).scatter(0, order, unlikely), -torch.inf)
    if sampling.min_p > 0:
        probabilities = logits.softmax(0)
        logits = logits.masked_fill(probabilities < sampling.min_p * probabilities.max(), -torch.inf)
    return logits


class _Batch:
    """The caches of rows that are written together. Shorter rows are padded on the left."""

    def __init__(self, model: Transformer, rows: list[list[int]], capacity: int) -> None:
        self.model = model
        self.device = model.embedding.weight.device
        self.caches = [KeyValueCache(capacity) for _ in model.blocks]
        longest = max(map(len, rows))
        padding = [longest - len(row) for row in rows]
        self.padding = torch.tensor(padding, device=self.device)
        tokens = torch.tensor(
            [[0] * n + row for n, row in zip(padding, rows, strict=True)], device=self.device
        )
        positions = torch.arange(longest, device=self.device) - self.padding[:, None]
        mask = None
        if any(padding):
            # Padding attends to itself, so that no row of the softmax is empty.
            causal = torch.ones(longest, longest, dtype=torch.bool, device=self.device).tril()
            own = torch.eye(longest, dtype=torch.bool, device=self.device)
            mask = ((causal & (positions >= 0)[:, None]) | own)[:, None]
        self.logits = self._forward(tokens, positions.clamp(min=0), mask)

    def _forward(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        states = self.model.hidden_states(tokens, positions, mask, self.caches)[:, -1]
        return self.model.lm_head(states).float().cpu()

    @property
    def length(self) -> int:
        """Tokens and padding of each row."""
        return self.caches[0].length

    def make_room(self, full: dict[int, list[int]], ended: list[int]) -> None:
        """Take out of the caches what no row needs.

        Args:
            full: rows that forget what they have read, and these tokens of each, as many of each, which it reads instead.
            ended: rows that need nothing any more.
        """
        length = self.length
        self.padding[ended] = length - 1
        if full:
            rows, n_tokens = list(full), len(next(iter(full.values())))
            read = _Batch(self.model, list(full.values()), n_tokens)
            for cache, own in zip(self.caches, read.caches, strict=True):
                for buffer, new in ((cache.keys, own.keys), (cache.values, own.values)):
                    assert buffer is not None
                    assert new is not None
                    buffer[rows, :, length - n_tokens : length] = new
            self.padding[rows] = length - n_tokens
        unused = int(self.padding.min())
        for cache in self.caches:
            for buffer in (cache.keys, cache.values):
                assert buffer is not None
                buffer[:, :, : length - unused] = buffer[:, :, unused:length].clone()
            cache.length = length - unused
        self.padding -= unused

    def step(self, tokens: list[int]) -> None:
        """Append one token to every row."""
        length, mask = self.length, None
        if self.padding.any():
            mask = (torch.arange(length + 1, device=self.device) >= self.padding[:, None])[:, None, None]
        positions = (length - self.padding)[:, None]
        self.logits = self._forward(torch.tensor(tokens, device=self.device)[:, None], positions, mask)


@torch.inference_mode()
def generate(
    model: Transformer, prompts: Sequence[Sequence[int]], sampling: Sampling, ends: frozenset[int]
) -> Iterator[list[int | None]]:
    """The next token of every prompt, again and again; None for a prompt that has ended.

    A row ends after an id of `ends`, which it yields, or after `max_tokens`. What a row
    chooses does not depend on the other rows. When its own context is full, the older half of
    it is forgotten.

    Args:
        model: in evaluation mode.
        prompts: token ids, at least one for each prompt.
        sampling: how to choose; `stop` is for text and not used here.
        ends: ids that end a row.
    """
    context_length = model.config.context_length
    rows = [list(prompt)[-context_length:] for prompt in prompts]
    generators = [
        torch.Generator().manual_seed((sampling.seed + i * 0x9E3779B9) % 2**63) for i in range(len(rows))
    ]
    alive = [True] * len(rows)
    capacity = min(context_length, max(map(len, rows)) + sampling.max_tokens)
    batch = _Batch(model, rows, capacity)
    n_kept = max(1, context_length // 2 - 1)  # beside the newest token
    for n_written in range(1, sampling.max_tokens + 1):
        new: list[int | None] = []
        for i, row in enumerate(rows):
            if not alive[i]:
                new.append(None)
                continue
            logits = filter_logits(batch.logits[i], torch.tensor(row), sampling)
            if sampling.temperature == 0:
                token = int(logits.argmax())
            else:
                token = int(torch.multinomial(logits.softmax(0), 1, generator=generators[i]))
            new.append(token)
            row.append(token)
            alive[i] = token not in ends
        yield new
        if n_written == sampling.max_tokens or not any(alive):
            return
        if batch.length >= capacity:
            # Full for the longest row, which may have ended; each forgets when it is full itself.
            sizes = (batch.length - batch.padding).tolist()
            full = {
                i: row[-n_kept - 1 : -1]
                for i, row in enumerate(rows)
                if alive[i] and sizes[i] >= context_length
            }
            batch.make_room(full, [i for i in range(len(rows)) if not alive[i]])
        batch.step([0 if token is None else token for token in new])


class _Stream:
    """Text of one row as its tokens come, held back while it may be the beginning of a stop text."""

    def __init__(self, tokenizer: "Tokenizer", stop: tuple[str, ...]) -> None:
        from tokenizers.decoders import DecodeStream

        self.tokenizer, self.stop = tokenizer, tuple(filter(None, stop))
        self.decoder = DecodeStream(skip_special_tokens=True)
        self.held, self.done = "", False

    def push(self, token: int) -> str:
        """The text that is sure after one more token."""
        self.held += self.decoder.step(self.tokenizer, token) or ""
        stop_at = min((at for text in self.stop if (at := self.held.find(text)) >= 0), default=-1)
        if stop_at >= 0:
            self.done = True
            sure, self.held = self.held[:stop_at], ""
            return sure
        longest = max(
            (n for text in self.stop for n in range(len(text)) if self.held.endswith(text[:n])), default=0
        )
        cut = len(self.held) - longest
        sure, self.held = self.held[:cut], self.held[cut:]
        return sure

    def close(self) -> str:
        """What is held back when the row ends in another way."""
        rest, self.held, self.done = self.held, "", True
        return rest


def generate_text(
    model: Transformer,
    tokenizer: "Tokenizer",
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    ends: frozenset[int],
) -> Iterator[list[str]]:
    """Pieces of text that go on from every prompt, as they come; "" for a row with nothing new.

    Args:
        model, prompts, sampling, ends: see `generate`.
        tokenizer: turns ids into text, without special tokens.
    """
    streams = [_Stream(tokenizer, sampling.stop) for _ in prompts]
    for new in generate(model, prompts, sampling, ends):
        pieces = []
        for stream, token in zip(streams, new, strict=True):
            if stream.done or token is None:
                pieces.append("")
            elif token in ends:
                pieces.append(stream.close())
            else:
                pieces.append(stream.push(token))
        yield pieces
        if all(stream.done for stream in streams):
            return
    yield [stream.held if not stream.done else "" for stream in streams]


def complete(
    model: Transformer,
    tokenizer: "Tokenizer",
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    ends: frozenset[int],
    on_token: Callable[[], None] = lambda: None,
) -> list[str]:
    """The whole text that goes on from every prompt; see `generate_text`.

    Args:
        on_token: called after each token of all of them.
    """
    texts = [""] * len(prompts)
    for pieces in generate_text(model, tokenizer, prompts, sampling, ends):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        on_token()
    return texts
