"""train_tokenizer: a byte-level BPE tokenizer from scratch, on the training documents."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from model.base_config import Config
from model.tokenizer import END_OF_TEXT, TOKEN_BYTES, TOKENIZER, load_tokenizer
from tasks.engine.stage import Artifact, Metrics, stage
from tasks.tables import read_column, read_table
from tasks.text.documents import DOCUMENTS, document_digest
from tasks.text.selection import SELECTION, TRAIN, VALIDATION

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The pre-tokenizer of GPT-4 (tiktoken's cl100k_base), without possessive quantifiers. Without
# one, training on long documents does not end.
SPLIT_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


_UNBROKEN = re.compile(r"[^\W\d_]{1000,}|[^\w\s]{1000,}|\s{1000,}")
"""Runs of letters, of marks and of white space, which the pattern above leaves in one piece."""

_PIECES = 100
"""A sample is made of about so many pieces at least, so that it comes near the size that was asked for."""


def _pieces(text: str, size: int) -> Iterator[str]:
    """A text in pieces of about `size` bytes, cut at white space."""
    start = 0
    while len(text) - start > size:
        cut = text.rfind(" ", start + size // 2, start + size)
        cut = cut if cut > start else start + size
        yield text[start:cut]
        start = cut
    yield text[start:]


class TrainTokenizerConfig(Config):
    """Size of the vocabulary and of the text that it is learnt from."""

    vocabulary_size: int = Field(
        8192,
        ge=257,
        le=1_000_000,
        description="Entries, the 256 bytes and end-of-text included; fewer if the text has not as many.",
    )
    min_frequency: int = Field(
        2, ge=1, description="Least number of times that a pair must occur to be merged."
    )
    sample_bytes: int = Field(
        200_000_000,
        ge=1,
        le=4_000_000_000,
        description="Most text to learn from, in bytes, chosen by hash; beyond about 4 GB the pair counts would overflow.",
    )


def selected_texts(documents: Artifact, selection: Artifact, side: str) -> Iterator[tuple[str, str]]:
    """Id and text of every document on one side, in order."""
    for shard, chosen in zip(documents.shards, selection.shards, strict=True):
        sides = read_column(chosen / SELECTION, "side")
        ids, texts = (column.to_pylist() for column in read_table(shard / DOCUMENTS, ["id", "text"]).columns)
        for identifier, text, own in zip(ids, texts, sides, strict=True):
            if own == side:
                yield identifier, text


def _learnable(text: str) -> Iterator[str]:
    """A text without its unbroken runs of a thousand and more: to learn from one takes time that grows with its square."""
    start = 0
    for run in _UNBROKEN.finditer(text):
        yield text[start : run.start()]
        start = run.end()
    yield text[start:]


def _bytes_on_side(documents: Artifact, selection: Artifact, side: str) -> int:
    """Bytes of text on one side, without making a Python object of any."""
    import pyarrow.compute as pc

    total = 0
    for shard, chosen in zip(documents.shards, selection.shards, strict=True):
        table = read_table(shard / DOCUMENTS, ["text"])
        on_side = pc.equal(read_table(chosen / SELECTION, ["side"]).column("side"), side)
        total += pc.sum(pc.binary_length(table.filter(on_side).column("text"))).as_py() or 0
    return total


class _Sample:
    """Training documents, about `sample_bytes` of them, chosen by hash: so the choice does not depend on their order.

    Whole documents where there are enough of them; of a corpus with few and large ones, pieces.

    Attributes:
        n_bytes: what was read of it so far.
    """

    def __init__(self, documents: Artifact, selection: Artifact, sample_bytes: int) -> None:
        self.documents, self.selection, self.sample_bytes = documents, selection, sample_bytes
        self.n_bytes = 0

    def __iter__(self) -> Iterator[str]:
        total = _bytes_on_side(self.documents, self.selection, TRAIN)
        bound = 2**64 * min(1.0, self.sample_bytes / max(1, total))
        for identifier, text in selected_texts(self.documents, self.selection, TRAIN):
            for piece in _pieces(text, max(1, self.sample_bytes // _PIECES)):
                if document_digest(identifier, piece) < bound:
                    self.n_bytes += len(piece.encode())
                    yield from _learnable(piece)


def _train(config: TrainTokenizerConfig, texts: Iterable[str]) -> "Tokenizer":
    """Byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909; bytes as in GPT-2)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary_size,
        min_frequency=config.min_frequency,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@stage(libraries=("tokenizers", "fastokens", "numpy", "pyarrow"))
def train_tokenizer(
    config: TrainTokenizerConfig, documents: Artifact, selection: Artifact, out: Path
) -> Metrics:
    """Write tokenizer.json, token_bytes.json (bytes that each id stands for) and figures/samples.json (for a person)."""
    import fastokens
    import numpy as np

    out.mkdir(parents=True, exist_ok=True)
    sample = _Sample(documents, selection, config.sample_bytes)
    _train(config, sample).save(str(out / TOKENIZER))
    tokenizer = load_tokenizer(out)
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    # In a byte-level vocabulary each character of an entry stands for one byte.
    token_bytes = [0 if names[i] == END_OF_TEXT else len(names[i]) for i in range(len(names))]
    (out / TOKEN_BYTES).write_text(json.dumps(token_bytes))

    n_tokens, n_bytes = 0, 0
    examples: list[list[str]] = []
    encoder = fastokens.Tokenizer.from_file(str(out / TOKENIZER))
    for _, text in selected_texts(documents, selection, VALIDATION):
        ids = np.frombuffer(encoder.encode_batch_flat([text], split_special_tokens=True)[0], np.uint32)
        n_tokens, n_bytes = n_tokens + len(ids), n_bytes + len(text.encode())
        if len(examples) < 3:
            examples.append([tokenizer.decode([number]) for number in ids[:120].tolist()])
    longest = sorted(range(len(names)), key=lambda i: (-token_bytes[i], i))[:20]
    samples = {"validation": examples, "longest": [tokenizer.decode([number]) for number in longest]}
    (out / "figures").mkdir(exist_ok=True)
    (out / "figures" / "samples.json").write_text(json.dumps(samples, ensure_ascii=False, indent=1))
    return {
        "vocabulary_size": len(names),
        "training_bytes": sample.n_bytes,
        "bytes_per_token": round(n_bytes / max(1, n_tokens), 4),
    }
