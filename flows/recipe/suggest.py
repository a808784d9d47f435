"""A recipe that fits a text, a machine and a time: what `scratchlm init` writes, with the reason beside each choice."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.recipe.recipe import Recipe
from flows.recipe.survey import Survey

Foresee = Callable[[Recipe], tuple[float, float]]
"""A recipe -> seconds of all of it, and of one step of its training, on this machine."""

_Shape = tuple[int, int, int, int]
_SHAPES: tuple[_Shape, ...] = (
    # layers, width, heads, context: the widths of a head are 32 to 64, the context grows with what a model can use.
    (2, 64, 2, 128),
    (2, 96, 2, 128),
    (2, 128, 2, 256),
    (3, 160, 4, 256),
    (4, 192, 4, 256),
    (4, 256, 4, 256),
    (6, 320, 5, 512),
    (6, 384, 6, 512),
    (8, 512, 8, 512),
    (10, 640, 10, 1024),
    (12, 768, 12, 1024),
)
_EPOCHS = 5.0
_TOKENS_PER_WEIGHT = 2.5
_SHARE_OF_TIME = 0.9
_REPEATED_EPOCHS = 1.5
_FEWEST_STEPS, _FEWEST_BYTES = 20, 30e6
_FLOPS_PER_SECOND = 80e9
"""Of two cores, before it is measured."""
_HELD_OUT_DOCUMENTS, _HELD_OUT_BYTES = 12, 2_000_000


@dataclass(frozen=True)
class Suggestion:
    """A recipe as its sections, and why each value is what it is, by section.field."""

    values: dict[str, Any]
    reasons: dict[str, str]

    @property
    def recipe(self) -> Recipe:
        """The recipe, checked."""
        return Recipe.model_validate(self.values)

    def as_yaml(self, title: str) -> str:
        """The recipe as a person would write it: short, with its reasons."""
        lines = [f"# {line}" for line in title.splitlines()]
        for section, value in self.values.items():
            if not isinstance(value, dict):
                lines.append(f"{section}: {_written(value)}")
                continue
            lines += ["", f"{section}:"]
            for name, item in value.items():
                reason = self.reasons.get(f"{section}.{name}")
                lines += [f"  # {reason}"] if reason else []
                lines.append(f"  {name}: {_written(item)}")
        return "\n".join(lines) + "\n"


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_written(item)}" for name, item in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:_}" if value >= 10_000 else str(value)
    if isinstance(value, str):
        # Quoted where YAML would take it for something else: no, null, 2024.
        is_plain = re.fullmatch(r"[A-Za-z_./][A-Za-z0-9_./-]*", value) and yaml.safe_load(value) == value
        return value if is_plain else json.dumps(value, ensure_ascii=False)
    return f"{value:.3g}"


def name_of(path: str) -> str:
    """A name for the recipe, from the path of its text."""
    stem = Path(path).expanduser().absolute().name
    stem = stem.split(".")[0] or stem
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "mine"


def _block_weights(layers: int, width: int) -> float:
    return 12 * layers * width * width


def suggest(seen: Survey, minutes: float, foresee: Foresee) -> Suggestion:
    """A recipe for a text, such that a run of it takes about so many minutes, or fewer if the text is little.

    Args:
        foresee: what a recipe takes on this machine; called a few times.
    """
    values, reasons = _text_sections(seen)
    seconds = 60 * minutes * _SHARE_OF_TIME
    train_share = 1 - values["split"]["validation_fraction"]

    # How many tokens a model could be taught in this time that gets as many for each weight as helps: C = 6 N T, T = r N.
    in_time = math.sqrt(seconds * _FLOPS_PER_SECOND * _TOKENS_PER_WEIGHT / 6)
    most = _EPOCHS * seen.text_bytes * train_share / bytes_per_token(4096)
    vocabulary_size = 2 ** round(min(15, max(10, 11 + 0.55 * math.log2(min(in_time, most) / 1e6))))
    tokens_of_text = seen.text_bytes * train_share / bytes_per_token(vocabulary_size)
    values["train_tokenizer"] = {"vocabulary_size": vocabulary_size}
    reasons["train_tokenizer.vocabulary_size"] = (
        "Entries of the tokenizer: more for more text; each must occur often enough to be learnt."
    )
    wanted_bytes = max(_FEWEST_BYTES, 3 * in_time * bytes_per_token(vocabulary_size))
    if seen.text_bytes > 2 * wanted_bytes:
        share = float(f"{wanted_bytes / seen.text_bytes:.1g}")
        values["ingest"]["sources"][0]["share"] = share
        tokens_of_text *= share
        reasons["ingest.sources"] = (
            "A share of the documents: there is no time for more; take share out when there is."
        )
        fraction = min(0.05, values["split"]["validation_fraction"] / share)
        values["split"]["validation_fraction"] = float(f"{fraction:.2g}")
    most = _EPOCHS * tokens_of_text

    if seen.is_english:
        values["evaluate_model"] = {"tasks": ["arc_easy", "sciq"], "limit": 200 if minutes <= 15 else 1000}
        reasons["evaluate_model.tasks"] = (
            "English questions; a small model answers them by chance, and the report says so."
        )
    else:
        values["evaluate_model"] = {"tasks": []}
        reasons["evaluate_model.tasks"] = "The built-in benchmarks are English, and this text is not."

    # The largest shape that the text can teach and for which there is time, at a speed that is measured twice or thrice.
    shape, tried, speed, rest = None, None, _FLOPS_PER_SECOND, 0.0
    for _ in range(3):
        shape = _largest(most, (seconds - rest) * speed, vocabulary_size)
        if shape == tried:
            break
        values["model"], values["train_model"] = _training(shape, min(most, _wanted(shape)))
        total, step_seconds = foresee(_ordered(values, reasons).recipe)
        train, tried = values["train_model"], shape
        rest = total - train["tokens"] / train["tokens_per_batch"] * step_seconds
        speed = train["tokens_per_batch"] * _flops_per_token(shape, vocabulary_size) / step_seconds
    assert shape is not None
    affordable = max(0.0, seconds - rest) * speed / _flops_per_token(shape, vocabulary_size)
    values["model"], values["train_model"] = _training(shape, min(most, affordable))
    epochs = values["train_model"]["tokens"] / tokens_of_text
    if epochs > _REPEATED_EPOCHS:
        values["train_model"]["averaging"] = 0.3
        reasons["train_model.averaging"] = (
            "The text repeats: averages of the weights over the last steps are better."
        )
    reasons["model.n_layers"] = (
        "The largest shape that this text and this time can teach; `scratchlm fields model` lists more."
    )
    limited = (
        "so little text is learnt by heart, but fewer steps teach a model nothing"
        if epochs > 1.5 * _EPOCHS
        else "the text is read no more often: beyond that a model learns it by heart"
        if most <= affordable
        else f"what {minutes:g} minutes allow here"
    )
    reasons["train_model.tokens"] = f"The text about {epochs:.1f} times; {limited}."
    return _ordered(values, reasons)


_SECTIONS = ("name", "ingest", "split", "train_tokenizer", "model", "train_model", "evaluate_model")


def _ordered(values: dict[str, Any], reasons: dict[str, str]) -> Suggestion:
    return Suggestion({name: values[name] for name in _SECTIONS}, reasons)


def _flops_per_token(shape: _Shape, vocabulary_size: int) -> float:
    """Of training: 6 for each weight of the blocks and of the head."""
    return 6 * (_block_weights(*shape[:2]) + vocabulary_size * shape[1])


def _wanted(shape: _Shape) -> float:
    """Tokens that a shape should be trained on at least."""
    return _TOKENS_PER_WEIGHT * _block_weights(*shape[:2])


def _largest(most: float, flops: float, vocabulary_size: int) -> _Shape:
    """The largest shape that so many tokens of text and so many FLOPs can teach; the smallest if none."""
    fitting = [
        shape
        for shape in _SHAPES
        if _wanted(shape) <= most and _wanted(shape) * _flops_per_token(shape, vocabulary_size) <= flops
    ]
    return fitting[-1] if fitting else _SHAPES[0]


def bytes_per_token(vocabulary_size: int) -> float:
    """Bytes of an entry of a tokenizer that was trained on the text that it cuts, roughly."""
    doublings = max(0, vocabulary_size.bit_length() - 9)
    return min(4.9, 1.9 + 0.5 * doublings)


def _training(shape: _Shape, tokens: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sections model and train_model for a shape and about so many tokens."""
    layers, width, heads, context = shape
    # About a thousand steps: fewer learn little, more gain little.
    batch = 2 ** round(math.log2(max(1.0, tokens / 1000)))
    batch = int(min(65_536, max(1024, context, batch)))
    steps = max(_FEWEST_STEPS, int(tokens // batch))
    model = {
        "n_layers": layers,
        "d_model": width,
        "n_heads": heads,
        "context_length": context,
        "qk_norm": True,
    }
    rate = 0.03 * math.sqrt(128 / width)
    train = {
        "tokens": steps * batch,
        "tokens_per_batch": batch,
        "learning_rate": float(f"{rate:.2g}"),
        "muon_learning_rate": 0.01,
    }
    return model, train


def _text_sections(seen: Survey) -> tuple[dict[str, Any], dict[str, str]]:
    """name, ingest and split, and their reasons."""
    source: dict[str, Any] = {"path": seen.path}
    documents = seen.documents
    if seen.text_field:
        source["text_field"] = seen.text_field
    reasons = {}
    if (
        documents < 60
        and seen.text_bytes > 20_000
        and set(seen.files) - {".jsonl", ".json", ".csv", ".parquet"}
    ):
        source["cut"] = "paragraphs"
        source["cut_bytes"] = max(1_000, min(16_000, int(seen.text_bytes / 80) // 100 * 100))
        documents = max(documents, seen.text_bytes / source["cut_bytes"])
        reasons["ingest.sources"] = (
            "Few files: they are cut at blank lines, so that some of it can be held out."
        )
    by_documents = _HELD_OUT_DOCUMENTS / max(1.0, documents)
    by_bytes = min(0.05, _HELD_OUT_BYTES / max(1.0, seen.text_bytes))
    fraction = float(f"{min(0.25, max(by_documents, by_bytes, 0.002)):.2g}")
    reasons["split.validation_fraction"] = (
        f"Held out, about {fraction * documents:,.0f} documents: the model is measured on text that it never read."
    )
    values = {
        "name": name_of(seen.path),
        "ingest": {"sources": [source]},
        "split": {"validation_fraction": fraction},
    }
    return values, reasons
