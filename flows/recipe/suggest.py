"""A recipe that fits a text, a machine and a time: what `scratchlm init` writes, with the reason beside each choice."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.recipe.recipe import Recipe
from flows.recipe.survey import Survey

Foresee = Callable[[Recipe], tuple[float, float]]
"""A recipe -> seconds of all of it, and of one step of its training, on this machine."""

_SHAPES = (
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
_FEWEST_STEPS = 20
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
                lines.append(f"{section}: {value}")
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
        return (
            value
            if re.fullmatch(r"[A-Za-z_./][A-Za-z0-9_./-]*", value)
            else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        )
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
    doublings = max(0, round(math.log2(max(1.0, seen.text_bytes / 1e6)) * 0.6))
    vocabulary_size = 1024 if seen.text_bytes < 300_000 else min(32_768, 2048 * 2**doublings)
    values["train_tokenizer"] = {"vocabulary_size": vocabulary_size}
    reasons["train_tokenizer.vocabulary_size"] = (
        "Entries of the tokenizer: more for more text; each must occur often enough to be learnt."
    )
    tokens_of_text = (
        seen.text_bytes * (1 - values["split"]["validation_fraction"]) / bytes_per_token(vocabulary_size)
    )

    values["model"], values["train_model"] = {}, {}
    if seen.is_english:
        values["evaluate_model"] = {"tasks": ["arc_easy", "sciq"], "limit": 200 if minutes <= 15 else 1000}
        reasons["evaluate_model.tasks"] = (
            "English questions; a small model answers them by chance, and the report says so."
        )
    else:
        values["evaluate_model"] = {"tasks": []}
        reasons["evaluate_model.tasks"] = "The built-in benchmarks are English, and this text is not."

    seconds = 60 * minutes * _SHARE_OF_TIME
    most = _EPOCHS * tokens_of_text
    # From the largest shape that the text can teach down to the first one that there is time for.
    fitting = [shape for shape in _SHAPES if _TOKENS_PER_WEIGHT * _block_weights(*shape[:2]) <= most]
    start = _first_guess(fitting or [_SHAPES[0]], seconds)
    candidates = (fitting or [_SHAPES[0]])[: start + 1]
    for shape in reversed(candidates):
        wanted = _TOKENS_PER_WEIGHT * _block_weights(*shape[:2])
        values["model"], values["train_model"] = _training(shape, min(most, wanted))
        total, step_seconds = foresee(Suggestion(values, reasons).recipe)
        train = values["train_model"]
        rest = total - train["tokens"] / train["tokens_per_batch"] * step_seconds
        affordable = (seconds - rest) / step_seconds * train["tokens_per_batch"]
        if affordable >= wanted:
            break
    values["model"], values["train_model"] = _training(shape, min(most, affordable))
    epochs = values["train_model"]["tokens"] / tokens_of_text
    reasons["model.n_layers"] = (
        "The largest shape that this text and this time can teach; `scratchlm fields model` lists more."
    )
    limited = (
        "the text is read no more often: beyond that a model learns it by heart"
        if most <= affordable
        else (f"what {minutes:g} minutes allow here")
    )
    reasons["train_model.tokens"] = f"The text about {epochs:.1f} times; {limited}."
    return Suggestion(values, reasons)


def bytes_per_token(vocabulary_size: int) -> float:
    """Bytes of an entry of a tokenizer that was trained on the text that it cuts, roughly."""
    doublings = max(0, vocabulary_size.bit_length() - 9)
    return min(4.9, 1.9 + 0.5 * doublings)


def _first_guess(shapes: list[tuple[int, int, int, int]], seconds: float) -> int:
    """The largest shape that could be trained in this time at a speed that no small machine has."""
    guess = 0
    for i, (layers, width, _, _) in enumerate(shapes):
        weights = _block_weights(layers, width)
        if 6 * weights * _TOKENS_PER_WEIGHT * weights <= seconds * 150e9:
            guess = i
    return guess


def _training(shape: tuple[int, int, int, int], tokens: float) -> tuple[dict[str, Any], dict[str, Any]]:
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
