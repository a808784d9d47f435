"""train_tokenizer: a byte-level BPE tokenizer from scratch, on the training documents."""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from model.base_config import Config
from model.tokenizer import END_OF_TEXT, TOKEN_BYTES, TOKENIZER, load_tokenizer
from tasks.engine.stage import Artifact, Metrics, stage
from tasks.tables import read_table
from tasks.text.documents import DOCUMENTS
from tasks.text.selection import SELECTION, TRAIN, VALIDATION

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

# The pre-tokenizer of GPT-4 (tiktoken's cl100k_base), without possessive quantifiers. Without
# one, training on long documents does not end.
SPLIT_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


_UNBROKEN = re.compile(r"[^\W\d_]{1000,}|(?:[^\w\s]|_){1000,}|\s{1000,}")
"""Runs of letters, of marks and of white space, which the pattern above leaves in one piece."""


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
        description="Most text to learn from, in bytes, chosen by hash, and most held-out text to measure it on; beyond about "
        "4 GB the pair counts would overflow.",
    )


def _learnable(text: str) -> Iterator[str]:
    """A text without its unbroken runs of a thousand and more: to learn from one takes time that grows with its square."""
    start = 0
    for run in _UNBROKEN.finditer(text):
        yield text[start : run.start()]
        start = run.end()
    yield text[start:]


_PIECES = 100
"""A sample that is not the whole text is made of about so many pieces at least, so that it comes near the size asked for."""

_MORE = 1.5
"""So much more is drawn than is taken, since how much is drawn is a matter of chance."""


def _draws(digests: "np.ndarray", pieces: "np.ndarray") -> "np.ndarray":
    """64 bits for each piece of each text, by the mixing of SplitMix64 (Steele et al. 2014, figure 15): uint64."""
    import numpy as np

    mixed = digests + (pieces.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


_SPACES = (b" ", b"\n", b"\t", b"\r")


def _piece(data: bytes, number: int, size: int) -> str:
    """One of the pieces of `size` bytes of a text, never larger, and without the words that lie across its ends.

    Args:
        data: the text in UTF-8.
    """
    start, end = number * size, (number + 1) * size
    piece = data[start:end]
    # Where there is no white space, as in Japanese, a letter at most is lost.
    first = min((at for space in _SPACES if (at := piece.find(space)) >= 0), default=0)
    if start > 0 and 0 < first <= size // 2:
        piece = piece[first:]
    last = max(piece.rfind(space) for space in _SPACES)
    if end < len(data) and last >= size // 2:
        piece = piece[:last]
    return piece.decode(errors="ignore")


class Sample:
    """Documents of a side, at most `sample_bytes` of them, chosen by hashes of their texts, whatever their order.

    Whole documents where there are enough of them; of a corpus with few and large ones, pieces. The choice is made by the
    selection alone, and of the documents only those shards are read that hold some of it.

    Attributes:
        n_bytes: what was read of it so far.
    """

    def __init__(self, documents: Artifact, selection: Artifact, side: str, sample_bytes: int) -> None:
        self.documents, self.selection, self.side = documents, selection, side
        self.sample_bytes, self.n_bytes = sample_bytes, 0

    def __iter__(self) -> Iterator[str]:
        self.n_bytes = 0
        size, chosen = self.choose()
        for shard, picked in zip(self.documents.shards, chosen, strict=True):
            if not len(picked):
                continue
            texts = read_table(shard / DOCUMENTS, ["text"]).column("text")
            for row, pieces in groupby(picked.tolist(), key=itemgetter(0)):
                # Once, however many pieces of it are taken.
                data = texts[row].as_py().encode()
                for _, number in pieces:
                    piece = _piece(data, number, size) if size else data.decode()
                    self.n_bytes += len(piece.encode())
                    yield piece

    def choose(self) -> "tuple[int, list[np.ndarray]]":
        """Size of a piece in bytes, 0 for whole documents; and of each shard rows and numbers of pieces, int64 (n, 2)."""
        import numpy as np
        import pyarrow.compute as pc

        def on_side(shard: Path, *columns: str) -> list[np.ndarray]:
            table = read_table(shard / SELECTION, ["side", *columns])
            rows = np.flatnonzero(pc.equal(table.column("side"), self.side).to_numpy())
            return [rows, *(table.column(column).to_numpy()[rows] for column in columns)]

        total = sum(int(on_side(shard, "bytes")[1].sum()) for shard in self.selection.shards)
        if total <= self.sample_bytes:
            whole = [on_side(shard)[0] for shard in self.selection.shards]
            return 0, [np.stack([rows, np.zeros_like(rows)], axis=1) for rows in whole]

        # What is drawn, with a little more than is needed, shard by shard: draw, bytes, shard, row, piece.
        size = max(1, self.sample_bytes // _PIECES)
        bound = np.uint64(min(2**64 - 1, int(2**64 * _MORE * self.sample_bytes / total)))
        parts = []
        for shard, folder in enumerate(self.selection.shards):
            rows, digests, n_bytes = on_side(folder, "text_digest", "bytes")
            n_pieces = np.maximum(1, -(-n_bytes // size))
            place = np.repeat(np.arange(len(rows)), n_pieces)
            piece = np.arange(len(place)) - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces)
            draws = _draws(digests[place], piece)
            sizes = np.minimum(size, n_bytes[place] - piece * size)
            drawn = draws <= bound
            columns = (sizes, np.full_like(piece, shard), rows[place], piece)
            parts.append((draws[drawn], np.stack(columns, axis=1)[drawn]))
        draws = np.concatenate([draws for draws, _ in parts])
        pieces = np.concatenate([columns for _, columns in parts])

        # Of that the lowest, up to the size asked for; read in the order in which it lies.
        pieces = pieces[np.argsort(draws, kind="stable")]
        pieces = pieces[np.cumsum(pieces[:, 0]) <= self.sample_bytes][:, 1:]
        pieces = pieces[np.lexsort(pieces.T[::-1])]
        cuts = np.searchsorted(pieces[:, 0], np.arange(1, len(self.selection.shards)))
        return size, [part[:, 1:] for part in np.split(pieces, cuts)]


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
    sample = Sample(documents, selection, TRAIN, config.sample_bytes)
    parts = (part for text in sample for part in _learnable(text))
    _train(config, parts).save(str(out / TOKENIZER))
    tokenizer = load_tokenizer(out)
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    # In a byte-level vocabulary each character of an entry stands for one byte.
    token_bytes = [0 if names[i] == END_OF_TEXT else len(names[i]) for i in range(len(names))]
    (out / TOKEN_BYTES).write_text(json.dumps(token_bytes))

    n_tokens, n_bytes = 0, 0
    examples: list[list[str]] = []
    encoder = fastokens.Tokenizer.from_file(str(out / TOKENIZER))
    for text in Sample(documents, selection, VALIDATION, config.sample_bytes):
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
