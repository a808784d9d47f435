"""tokenize_conversations: conversations to token ids with a mask of what is learnt, training and validation apart."""

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from model.base_config import Config
from model.chat_template import encode_conversation, fast_tokenizer
from model.errors import InputError
from model.tokenizer import end_of_text_id, load_tokenizer, tokenizer_sha256
from tasks.engine.stage import Artifact, Metrics, Parts, Shard, map_stage
from tasks.tables import read_table
from tasks.text.documents import DOCUMENTS
from tasks.text.selection import SELECTION, SIDES


class TokenizeConversationsConfig(Config):
    """How long a conversation may be."""

    context_length: int = Field(
        ge=8, description="Longest conversation, in tokens: the base's context, filled in."
    )
    max_too_long: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Largest share of conversations longer than the context; they are dropped.",
    )


def _fit(config: TokenizeConversationsConfig, parts: Parts) -> Metrics:
    metrics = parts.metrics
    kept = sum(metrics.get(side, {}).get("documents", 0) for side in SIDES)
    too_long = metrics.get("too_long", {})
    count = len(too_long)
    if count > config.max_too_long * (kept + count):
        longest, n_tokens = max(too_long.items(), key=lambda item: item[1]) if too_long else ("", 0)
        raise InputError(
            f"{count} of {kept + count} conversations are longer than the context of {config.context_length} tokens "
            f"(the longest is {longest} with {n_tokens}): shorten them, raise context_length as far as the base reads, or take one "
            f"that reads more, or raise tokenize_conversations.max_too_long (now {config.max_too_long})"
        )
    for side in SIDES:
        if not metrics.get(side, {}).get("documents"):
            raise InputError(f"no conversation is left for {side}: add some, or change the section split")
    return metrics


@map_stage(
    libraries=("transformers", "tokenizers", "jinja2", "pyarrow", "numpy", "xxhash"),
    role="tokenize",
    finish=_fit,
)
def tokenize_conversations(
    config: TokenizeConversationsConfig, documents: Shard, selection: Shard, tokenizer: Artifact, out: Path
) -> Metrics:
    """Write train.arrow and validation.arrow (see `model.tokens`): each conversation a document, the assistant's turns trained.

    Of a preference pair come two documents, ID#chosen and then ID#rejected, with the last turn trained.
    """
    import numpy as np

    from model.tokens import write_tokens

    loaded = load_tokenizer(tokenizer.path)
    fast = fast_tokenizer(loaded, chat=True)
    digest, end_of_text = tokenizer_sha256(tokenizer.path), end_of_text_id(loaded)
    rows = read_table(documents.path / DOCUMENTS, ["id", "source", "text", "metadata"]).to_pylist()
    sides = read_table(selection.path / SELECTION, ["side"]).column("side").to_pylist()
    metrics: Metrics = {"too_long": {}}
    for side in SIDES:
        ids: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        names: list[str] = []
        sources: list[str] = []
        n_bytes: list[int] = []
        for row in (row for row, own in zip(rows, sides, strict=True) if own == side):
            encoded = _encode(fast, json.loads(row["metadata"]))
            longest = max(len(tokens) for _, tokens, _ in encoded)
            if longest > config.context_length + 1:
                metrics["too_long"][row["id"]] = longest
                continue
            for suffix, tokens, mask in encoded:
                ids.append(np.array(tokens[1:], np.uint32))
                masks.append(np.array(mask[1:], np.uint8))
                names.append(row["id"] + suffix)
                sources.append(row["source"])
                n_bytes.append(len(row["text"].encode()))
        out.mkdir(parents=True, exist_ok=True)
        header = write_tokens(
            out / f"{side}.arrow",
            ids,
            names,
            sources,
            n_bytes,
            tokenizer_sha256=digest,
            vocabulary_size=loaded.get_vocab_size(),
            end_of_text_id=end_of_text,
            trained=masks,
        )
        trained = int(sum(mask.sum() for mask in masks))
        metrics[side] = {
            "tokens": header.n_tokens,
            "documents": header.n_documents,
            "trained_tokens": trained,
        }
    return metrics


def _encode(fast: Any, metadata: dict[str, Any]) -> list[tuple[str, list[int], list[int]]]:
    """Suffix of the id, ids, and mask of each document that a row becomes."""
    if "messages" in metadata:
        return [("", *encode_conversation(fast, metadata["messages"]))]
    pair = []
    for name in ("chosen", "rejected"):
        tokens, mask = encode_conversation(fast, metadata[name])
        # Of the turns before the last, both sides have the same: no preference is in them.
        before, _ = encode_conversation(fast, metadata[name][:-1])
        pair.append((f"#{name}", tokens, [0 if i < len(before) else own for i, own in enumerate(mask)]))
    return pair
