"""Text from a model: sampling, one token after another."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def next_token(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    """Choose a token from logits (V,): the likeliest at temperature 0, else at random among the `top_k` likeliest (0: all)."""
    if temperature == 0:
        return int(logits.argmax())
    if top_k and top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], float("-inf"))
    return int(torch.multinomial((logits.double() / temperature).softmax(-1), 1, generator=generator))


@torch.no_grad()
def generate(
    logits: Callable[[Tensor], Tensor],
    tokenizer: "Tokenizer",
    prompt: str,
    *,
    end_of_text: int,
    context_length: int,
    max_tokens: int,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
) -> Iterator[str]:
    """Pieces of text that go on from a prompt, until end-of-text or `max_tokens`.

    Args:
        logits: function from ids (1, T) to logits (1, T, V).
        tokenizer: encodes the prompt as plain text, whatever it spells.
        prompt: text to go on from; it is put after end-of-text, as each training document was.
        end_of_text: id of end-of-text.
        context_length: tokens that the model sees; older ones are forgotten.
        max_tokens: most tokens to write.
        temperature, top_k, seed: see `next_token`.
    """
    from tokenizers.decoders import DecodeStream

    tokens = [end_of_text, *tokenizer.encode(prompt, add_special_tokens=False).ids]
    generator = torch.Generator().manual_seed(seed)
    stream = DecodeStream(skip_special_tokens=True)
    for _ in range(max_tokens):
        scores = logits(torch.tensor([tokens[-context_length:]]))[0, -1].float().cpu()
        token = next_token(scores, temperature, top_k, generator)
        if token == end_of_text:
            return
        tokens.append(token)
        piece = stream.step(tokenizer, token)
        if piece:
            yield piece
