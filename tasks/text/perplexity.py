"""perplexity: drops what a language model finds too unlikely, or too likely; a step for clean.filters.

Text that is no language needs many bits a byte, and text that repeats itself few (Wenzek et al. 2020, CCNet, arXiv
1911.00359, section 4.2). torch is needed by those only who take this step, so it is none of the steps of every recipe.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from model.errors import InputError
from model.stock import load_stock_model
from tasks.text.judging import Documents, Fault, Faults, Filter

_LIBRARIES = ("torch", "transformers", "tokenizers")
_WINDOWS_AT_ONCE = 16


def _folder_digest(folder: Path) -> str:
    """SHA-256 over what decides the likelihoods of a model in a Hugging Face folder."""
    digest = hashlib.sha256()
    for path in (folder / "config.json", folder / "tokenizer.json", *sorted(folder.glob("*.safetensors"))):
        with path.open("rb") as file:
            digest.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


class Perplexity(Filter):
    """Drop documents of which a model needs more, or fewer, bits for a byte than the recipe allows."""

    model: str = Field(
        min_length=1, description="Hugging Face folder of the model, such as that of an earlier run."
    )
    max_bits_per_byte: float | None = Field(None, gt=0, description="Most bits for a byte of the text.")
    min_bits_per_byte: float | None = Field(None, gt=0, description="Fewest bits for a byte of the text.")
    max_tokens: int = Field(
        512, ge=8, description="Tokens of a document that are read, from its beginning, in tokens."
    )
    digest: str = Field("", description="SHA-256 of the model; filled in when the recipe is read.")
    libraries: dict[str, str] = Field({}, description="Versions of what computes it; filled in, too.")

    @model_validator(mode="before")
    @classmethod
    def _name_the_model(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("digest") or not isinstance(values.get("model"), str):
            return values
        folder = Path(values["model"]).expanduser().absolute()
        try:
            digest = _folder_digest(folder)
        except OSError as error:
            raise ValueError(f"{values['model']!r} is no Hugging Face folder: {error}") from error
        versions = {name: version(name) for name in _LIBRARIES}
        return {**values, "model": str(folder), "digest": digest, "libraries": versions}

    @model_validator(mode="after")
    def _judges_something(self) -> Self:
        if self.max_bits_per_byte is None and self.min_bits_per_byte is None:
            raise ValueError("neither max_bits_per_byte nor min_bits_per_byte is set: give one")
        return self

    def judge(self, documents: Documents) -> Faults:
        """What is wrong with each of the documents."""
        found = bits_per_byte(self.model, self.digest, documents.texts, self.max_tokens)
        most, fewest = self.max_bits_per_byte, self.min_bits_per_byte
        faults: Faults = []
        for bits in found:
            if most is not None and bits > most:
                faults.append(Fault("unlikely under the model", "max_bits_per_byte", bits, most))
            elif fewest is not None and bits < fewest:
                faults.append(Fault("too likely under the model", "min_bits_per_byte", bits, fewest))
            else:
                faults.append(None)
        return faults


@cache
def _load(folder: str, digest: str) -> tuple[Any, Any]:
    import transformers

    try:
        is_same = _folder_digest(Path(folder)) == digest
    except OSError as error:
        raise InputError(f"the model {folder} cannot be read: {error}") from error
    if not is_same:
        raise InputError(
            f"the model {folder} is not the one that the recipe was read with: give it back, or run the recipe again"
        )
    return load_stock_model(folder), transformers.AutoTokenizer.from_pretrained(folder)


def _windows(ids: list[int], first: int, length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Inputs and targets of each window of a text that begins after the token `first`."""
    whole = [first, *ids]
    for start in range(0, len(ids), length):
        yield whole[start : start + length][: len(ids) - start], ids[start : start + length]


def bits_per_byte(folder: str, digest: str, texts: Sequence[str], max_tokens: int) -> list[float]:
    """Bits that a model needs for a byte of the beginning of each text, to four places; 0 where there is no text.

    Args:
        folder: a Hugging Face folder.
        digest: of what is in it.
        max_tokens: tokens of a text that are read.
    """
    import math

    import torch
    import torch.nn.functional as F

    model, tokenizer = _load(folder, digest)
    length, first = model.config.max_position_embeddings, tokenizer.eos_token_id
    n_bytes, windows = [], []
    for number, text in enumerate(texts):
        encoded = tokenizer(
            text,
            add_special_tokens=False,
            truncation=True,
            max_length=max_tokens,
            return_offsets_mapping=True,
        )
        ends = [end for _, end in encoded["offset_mapping"]]
        n_bytes.append(len(text[: max(ends, default=0)].encode()))
        windows += [(number, *window) for window in _windows(encoded["input_ids"], first, length)]
    nats = [0.0] * len(texts)
    windows.sort(key=lambda window: len(window[1]))
    with torch.no_grad():
        for start in range(0, len(windows), _WINDOWS_AT_ONCE):
            some = windows[start : start + _WINDOWS_AT_ONCE]
            longest = max(len(targets) for _, _, targets in some)
            inputs = torch.full((len(some), longest), first)
            wanted = torch.full((len(some), longest), -100)
            for row, (_, ids, targets) in enumerate(some):
                inputs[row, : len(ids)], wanted[row, : len(targets)] = (
                    torch.tensor(ids),
                    torch.tensor(targets),
                )
            logits = model(inputs).logits.transpose(1, 2)
            losses = F.cross_entropy(logits, wanted, ignore_index=-100, reduction="none").double().sum(1)
            for (number, _, _), loss in zip(some, losses.tolist(), strict=True):
                nats[number] += loss
    return [
        round(own / math.log(2) / size, 4) if size else 0.0 for own, size in zip(nats, n_bytes, strict=True)
    ]
