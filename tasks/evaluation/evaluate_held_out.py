"""evaluate_held_out: bits per byte of held-out documents, each of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.errors import StageFailed
from model.machine import TrainingMachine
from model.stock import load_stock_model
from model.tokenizer import TOKEN_BYTES, end_of_text_id, load_tokenizer
from tasks.engine.machine import Machine
from tasks.engine.on_ranks import call_on_ranks
from tasks.engine.ranks import Rank
from tasks.engine.stage import Artifact, Metrics, stage
from tasks.evaluation.held_out import HELD_OUT, HELD_OUT_SCHEMA
from tasks.reading import gathered, reading, share_of
from tasks.tables import read_table, write_table
from tasks.text.documents import DOCUMENTS
from tasks.text.selection import SELECTION


def _texts(documents: list[str], selection: list[str]) -> Iterator[tuple[str, str]]:
    """Id and raw text, before cleaning, of every held-out document.

    Args:
        documents: folders of their shards.
        selection: the same.
    """
    wanted: set[str] = set()
    for shard in selection:
        table = read_table(Path(shard) / SELECTION, ["id", "side"])
        ids, sides = (column.to_pylist() for column in table.columns)
        wanted.update(identifier for identifier, side in zip(ids, sides, strict=True) if side == "validation")
    for shard in documents:
        table = read_table(Path(shard) / DOCUMENTS, ["id", "text"])
        ids, texts = (column.to_pylist() for column in table.columns)
        yield from (
            (identifier, text) for identifier, text in zip(ids, texts, strict=True) if identifier in wanted
        )


_LONGEST_WINDOW = 4096
"""A document that is longer is read in windows of so many tokens: the logits of more would fit nowhere."""
SAMPLES = "figures/samples.json"
"""How the model goes on with the beginnings of held-out documents, for a person."""
_SAMPLES, _MOST_WORDS, _MOST_CHARACTERS = 4, 6, 40


def _beginning(text: str) -> str:
    """The first words of a text; its first characters where words are not apart."""
    line = " ".join(text[:400].split()[:_MOST_WORDS])
    return line if len(line) <= _MOST_CHARACTERS else line[:_MOST_CHARACTERS].rsplit(" ", 1)[0]


def _samples(model: Any, tokenizer: Any, texts: list[tuple[str, str]], device: str) -> list[dict[str, str]]:
    """How the model goes on with the beginnings of some held-out documents, with a fixed seed."""
    import torch

    length, end = min(100, model.config.max_position_embeddings // 2), end_of_text_id(tokenizer)
    written = []
    for seed in range(min(_SAMPLES, len(texts))):
        identifier, text = texts[seed * len(texts) // min(_SAMPLES, len(texts))]
        prompt = _beginning(text)
        ids = [end, *tokenizer.encode(prompt, add_special_tokens=False).ids][: length + 1]
        torch.manual_seed(seed)
        tokens = torch.tensor([ids], device=device)
        sampling = {"do_sample": True, "temperature": 0.8, "top_k": 50, "max_new_tokens": length}
        made = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), pad_token_id=end, eos_token_id=end, **sampling
        )
        going_on = tokenizer.decode(made[0, len(ids) :].tolist(), skip_special_tokens=True)
        written.append({"id": identifier, "prompt": prompt, "text": going_on})
    return written


def _measure(
    loaded: Any,
    tokenizer: Any,
    token_bytes: Any,
    texts: list[tuple[str, str]],
    n_texts: int,
    device: str,
    rank: Rank,
) -> list[list[dict[str, Any]]]:
    """Rows of each document: nats, tokens and bytes of each of its windows.

    Args:
        texts: those of this rank, of `n_texts`.

    Raises:
        StageFailed: if a likelihood is not finite, or tokens do not spell the text.
    """
    import numpy as np

    from model.batches import next_token_windows
    from model.held_out import HeldOut, measure_windows, nats_of

    end_of_text = end_of_text_id(tokenizer)
    owners: list[int] = []
    length = min(loaded.config.max_position_embeddings, _LONGEST_WINDOW)

    def windows() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for owner, (_, text) in enumerate(texts):
            ids = np.array([end_of_text, *tokenizer.encode(text, add_special_tokens=False).ids])
            for window in next_token_windows(ids, length):
                owners.append(owner)
                yield window

    parts: list[list[HeldOut]] = [[] for _ in texts]
    try:
        measured = measure_windows(
            nats_of(lambda tokens: loaded(tokens).logits), windows(), token_bytes, device=device
        )
        for i, window in enumerate(measured):
            parts[owners[i]].append(window)
            rank.progress(min(n_texts, rank.count * (owners[i] + 1)), n_texts, "documents")
    except ValueError as error:
        raise StageFailed(str(error)) from error
    rows = []
    for (identifier, text), own in zip(texts, parts, strict=True):
        # The tokenizers of some bases write letters with their accents as one (NFC) first: then that is the text.
        spelt = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        if sum(own, HeldOut()).n_bytes != len(spelt.encode()):
            raise StageFailed(f"the held-out tokens do not spell the text of {identifier}")
        rows.append(
            [
                {
                    "id": identifier,
                    "window": i,
                    "nats": part.nats,
                    "tokens": part.n_tokens,
                    "bytes": part.n_bytes,
                }
                for i, part in enumerate(own)
            ]
        )
    return rows


def measure_as_rank(arguments: dict[str, Any], rank: Rank) -> Metrics:
    """Measure the documents that are this rank's to read; the first rank writes what all of them found."""
    import numpy as np

    from model.held_out import HeldOut

    model, out = Path(arguments["model"]), Path(arguments["out"])
    with reading(TrainingMachine.model_validate(arguments["machine"]), rank) as device:
        loaded = load_stock_model(model).to(device)
        tokenizer = load_tokenizer(model)
        token_bytes = np.array(json.loads((model / TOKEN_BYTES).read_text()), np.int64)
        texts = list(_texts(arguments["documents"], arguments["selection"]))
        rank.enter("step")
        own = _measure(loaded, tokenizer, token_bytes, share_of(texts, rank), len(texts), device, rank)
        by_document = gathered(rank, own)
    if rank.number:
        return {}
    write_table(out / HELD_OUT, [row for rows in by_document for row in rows], HELD_OUT_SCHEMA)
    (out / SAMPLES).parent.mkdir(exist_ok=True)
    written = _samples(loaded, tokenizer, texts, device)
    (out / SAMPLES).write_text(json.dumps(written, indent=1, ensure_ascii=False))
    whole = HeldOut()
    for rows in by_document:
        whole += sum((HeldOut(row["nats"], row["tokens"], row["bytes"]) for row in rows), HeldOut())
    return {
        "bits_per_byte": whole.bits_per_byte,
        "documents": len(texts),
        "bytes": whole.n_bytes,
        "tokens": whole.n_tokens,
    }


@stage(libraries=("transformers", "torch", "tokenizers", "numpy", "pyarrow"), retries=2, role="evaluate")
def evaluate_held_out(
    model: Artifact, documents: Artifact, selection: Artifact, out: Path, work: Path, machine: Machine
) -> Metrics:
    """Write held_out.parquet: nats, tokens and bytes of each window of each held-out document; and figures/samples.json.

    Each document stands alone after end-of-text, in windows of the context length, or of 4,096 tokens if that is shorter, that do not
    overlap. Ranks share the documents.

    Raises:
        StageFailed: if a likelihood is not finite, or tokens do not spell the text.
    """
    arguments = {
        "model": str(model.path),
        "documents": [str(shard) for shard in documents.shards],
        "selection": [str(shard) for shard in selection.shards],
        "out": str(out),
    }
    metrics: Metrics = call_on_ranks(measure_as_rank, arguments, machine, work)
    return metrics
