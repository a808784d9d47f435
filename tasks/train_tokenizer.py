"""train_tokenizer: a byte-level BPE tokenizer from scratch, on the training documents."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from model.base_config import Config
from tasks.documents.files import DOCUMENTS, SELECTION, document_digest, read_table
from tasks.errors import InputError
from tasks.stage import Artifact, Metrics, stage

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER, TOKEN_BYTES = "tokenizer.json", "token_bytes.json"
END_OF_TEXT = "<|endoftext|>"

# The pre-tokenizer of GPT-4 (tiktoken's cl100k_base), without possessive quantifiers. Without
# one, training on long documents does not end.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TrainTokenizerConfig(Config):
    """Size of the vocabulary and of the text that it is learnt from."""

    vocabulary_size: int = Field(
        8192,
        ge=257,
        le=1_000_000,
        description="Entries, the 256 bytes and end-of-text included; fewer if the text has not as many.",
    )
    min_frequency: int = Field(2, ge=1, description="Least number of times that a pair must occur to be merged.")
    sample_bytes: int = Field(
        200_000_000,
        ge=1,
        le=4_000_000_000,
        description="Most text to learn from, in bytes, chosen by hash; beyond about 4 GB the pair counts would overflow.",
    )


def load_tokenizer(folder: Path) -> "Tokenizer":
    """The tokenizer below `folder`; text that spells a special token stays text.

    The setting is lost when a tokenizer is saved, so it is set here, each time.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.encode_special_tokens = True
    return tokenizer


def end_of_text(tokenizer: "Tokenizer") -> str:
    """The special token that ends a text.

    Raises:
        InputError: if the tokenizer has none.
    """
    for name in (END_OF_TEXT, "<|end_of_text|>", "</s>"):
        if tokenizer.token_to_id(name) is not None:
            return name
    raise InputError(f"the tokenizer has none of {END_OF_TEXT}, <|end_of_text|> and </s>: take one that has")


def end_of_text_id(tokenizer: "Tokenizer") -> int:
    """Id of `end_of_text`."""
    found = tokenizer.token_to_id(end_of_text(tokenizer))
    assert found is not None
    return found


def tokenizer_sha256(folder: Path) -> str:
    """SHA-256 of the tokenizer file, which names the tokenizer."""
    return hashlib.sha256((folder / TOKENIZER).read_bytes()).hexdigest()


def selected_texts(documents: Artifact, selection: Artifact, side: str) -> Iterator[tuple[str, str]]:
    """Id and text of every document on one side, in order."""
    for shard, chosen in zip(documents.shards, selection.shards, strict=True):
        sides = read_table(chosen / SELECTION, ["side"]).column("side").to_pylist()
        table = read_table(shard / DOCUMENTS, ["id", "text"])
        for identifier, text, own in zip(table.column("id").to_pylist(), table.column("text").to_pylist(), sides, strict=True):
            if own == side:
                yield identifier, text


@stage(libraries=("tokenizers", "pyarrow"))
def train_tokenizer(config: TrainTokenizerConfig, documents: Artifact, selection: Artifact, out: Path) -> Metrics:
    """Write tokenizer.json, token_bytes.json (bytes that each id stands for) and samples.json."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    total = sum(len(text.encode()) for _, text in selected_texts(documents, selection, "train"))
    bound = 2**64 * min(1.0, config.sample_bytes / max(1, total))
    sampled = [0]

    def sample() -> Iterator[str]:
        for identifier, text in selected_texts(documents, selection, "train"):
            if document_digest(identifier, text) < bound:
                sampled[0] += len(text.encode())
                yield text

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary_size,
        min_frequency=config.min_frequency,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample(), trainer)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / TOKENIZER))
    tokenizer = load_tokenizer(out)
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    # In a byte-level vocabulary each character of an entry stands for one byte.
    token_bytes = [0 if names[i] == END_OF_TEXT else len(names[i]) for i in range(len(names))]
    (out / TOKEN_BYTES).write_text(json.dumps(token_bytes))

    n_tokens, n_bytes = 0, 0
    examples: list[list[str]] = []
    for _, text in selected_texts(documents, selection, "validation"):
        encoded = tokenizer.encode(text, add_special_tokens=False)
        n_tokens, n_bytes = n_tokens + len(encoded.ids), n_bytes + len(text.encode())
        if len(examples) < 3:
            examples.append([tokenizer.decode([number]) for number in encoded.ids[:120]])
    longest = sorted(range(len(names)), key=lambda i: (-token_bytes[i], i))[:20]
    samples = {"validation": examples, "longest": [tokenizer.decode([number]) for number in longest]}
    (out / "samples.json").write_text(json.dumps(samples, ensure_ascii=False, indent=1))
    return {
        "vocabulary_size": len(names),
        "training_bytes": sampled[0],
        "bytes_per_token": round(n_bytes / max(1, n_tokens), 4),
    }
