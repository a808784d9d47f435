"""forecast: what a run will take, before anything starts: seconds of each stage, memory, disk, and epochs.

From what earlier runs took on this computer; where there are none, from the size of the text, the rates below, and a
few seconds of the very training (`flows.runs.speed`), which are kept in the store.
"""

import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from flows.recipe.recipe import Recipe
from flows.recipe.suggest import bytes_per_token
from flows.runs.execute import Place
from flows.runs.inspect import folder_bytes
from flows.runs.plan import CACHED, Planned, plan
from flows.runs.record import Run, all_runs, previous_entries
from flows.runs.speed import Speed, foresee_training
from model.budget import count
from tasks.engine.stage import Node
from tasks.engine.store import Store
from tasks.text.listing import Listing, list_source, typical_shard_bytes
from tasks.text.sources import kind_of

_SERVER_SECONDS = 6.0
"""For the server of a run to start, and its report."""


class _Rate(NamedTuple):
    """What a stage costs: seconds to start, bytes or items a second of one core, and whether workers share it."""

    start_seconds: float
    per_second: float
    shared: bool = False


_RATES = {
    "ingest": _Rate(0.6, 30e6),
    "clean": _Rate(1.2, 10e6, shared=True),
    "minhash": _Rate(1.2, 40e6, shared=True),
    "find_copies": _Rate(0.6, 2_000e6),
    "find_duplicates": _Rate(1.0, 100e6),
    "deduplicate": _Rate(1.0, 100e6),
    "decontaminate": _Rate(1.2, 20e6, shared=True),
    "split": _Rate(0.6, 60e6, shared=True),
    "train_tokenizer": _Rate(0.8, 5.0e6),
    "tokenize": _Rate(1.0, 35e6, shared=True),
    "index_benchmarks": _Rate(3.0, 1_100),
    "export_model": _Rate(4.0, 100e6),
    "evaluate_held_out": _Rate(7.0, 1.0),
    "evaluate_model": _Rate(9.0, 1.0),
}
_ITEMS = {
    "arc_easy": 570,
    "sciq": 1000,
    "piqa": 1838,
    "arc_challenge": 299,
    "hellaswag": 10_042,
    "winogrande": 1267,
}
_ITEMS_UNKNOWN, _ITEMS_OWN, _TOKENS_PER_ITEM = 1_000, 200, 150
"""Of a benchmark: items where nobody counted them, of one's own, and tokens that are read for one, over all its answers."""


@dataclass(frozen=True)
class Sizes:
    """How much there is of a text: as it was counted where its stage is in the store, and as files tell elsewhere.

    Attributes:
        tokens: of the training side.
        is_counted: whether the tokens were.
    """

    text_bytes: float
    kept_bytes: float
    held_out_bytes: float
    vocabulary_size: int
    bytes_per_token: float
    tokens: float
    is_counted: bool


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Attributes:
        seconds: by stage, of those that are to be built.
        by_rates: the same by rates alone, of those that no earlier run tells, before what earlier runs correct.
        total_seconds: of all of it; stages run side by side where they can.
        epochs: how often the text is read.
        step_seconds: of one step of the training.
        advice: what a person should think of before it starts.
    """

    seconds: dict[str, float]
    by_rates: dict[str, float]
    total_seconds: float
    memory_bytes: float
    disk_bytes: float
    epochs: float
    step_seconds: float
    sizes: Sizes
    advice: tuple[str, ...] = ()
    host: str = field(default_factory=socket.gethostname)

    def as_json(self) -> dict[str, Any]:
        """What run.json keeps of it."""
        return {
            "host": self.host,
            "seconds": {stage: round(value, 1) for stage, value in self.seconds.items()},
            "by_rates": {stage: round(value, 1) for stage, value in self.by_rates.items()},
            "total_seconds": round(self.total_seconds, 1),
            "memory_bytes": round(self.memory_bytes),
            "disk_bytes": round(self.disk_bytes),
            "epochs": round(self.epochs, 2),
        }


_TEXT_IN_FILE = {
    "html": 0.25,
    "table": 0.9,
    "json": 0.9,
    "lines": 0.9,
    "parquet": 2.0,
    "office": 0.2,
    "archive": 0.2,
}


def text_bytes_of(recipe: Recipe, listings: Sequence[Listing], *, taken: bool = True) -> float:
    """Bytes of text in the sources, by the sizes and kinds of their files; nothing for a dataset of the hub, which nobody counts.

    Args:
        listings: of each source; to list one with a million files takes half a minute.
        taken: the share that is taken; else all that is read for it.
    """
    total = 0.0
    for source, listing in zip(recipe.ingest.sources, listings, strict=True):
        share = source.share if taken else 1.0
        if source.dataset_folder:
            total += share * folder_bytes(source.dataset_folder)
        for entry in listing.entries:
            kind = kind_of(Path(entry.name))
            if kind and entry.size > 0:
                packed = 3.0 if kind.compression else 1.0
                total += share * entry.size * packed * _TEXT_IN_FILE.get(kind.of, 1.0)
    return total


_FOLLOW_TEXT = (
    "ingest",
    "clean",
    "minhash",
    "find_copies",
    "find_duplicates",
    "deduplicate",
    "decontaminate",
    "split",
    "tokenize",
)
"""Stages that take time in proportion to the text."""


def _text_bytes_then(recipe: Recipe, store: Store) -> int | None:
    """How much text the last run of the recipe read."""
    entry = previous_entries(store, recipe.name).get("ingest")
    stored = store.find_whole("artifacts", "ingest", entry["key"]) if entry else None
    return stored.manifest.metrics["bytes"] if stored else None


def _sizes(recipe: Recipe, listings: Sequence[Listing], known: dict[str, dict[str, Any]]) -> Sizes:
    """How much there is of the text.

    Args:
        listings: of its sources.
        known: figures of the stages that are in the store.
    """
    read = known.get("ingest", {}).get("bytes") or text_bytes_of(recipe, listings)
    kept = known.get("clean", {}).get("kept_bytes") or read
    split = known.get("split")
    share = recipe.split.validation_fraction or 0.05
    held_out = split["validation"]["bytes"] if split else share * kept
    train = split["train"]["bytes"] if split else kept - held_out
    learnt = known.get("train_tokenizer", {})
    vocabulary_size = learnt.get("vocabulary_size") or recipe.train_tokenizer.vocabulary_size
    per_token = learnt.get("bytes_per_token") or bytes_per_token(vocabulary_size)
    counted = known.get("tokenize", {}).get("train", {}).get("tokens")
    return Sizes(
        read, kept, held_out, vocabulary_size, per_token, counted or train / per_token, bool(counted)
    )


def _items(recipe: Recipe, limit: int | None) -> int:
    """Items of the benchmarks; all of them are looked for in the text, and some of them asked."""
    stock = [_ITEMS.get(name, _ITEMS_UNKNOWN) for name in recipe.evaluate_model.tasks]
    own = [_ITEMS_OWN] * len(recipe.evaluate_model.questions)
    return sum(min(count, limit) if limit else count for count in stock + own)


def _was_resumed(store: Store, entry: dict[str, Any]) -> bool:
    """Whether it is a training whose seconds are those of its last attempt only."""
    if entry["role"] != "train":
        return False
    stored = store.find_whole("artifacts", entry["stage"], entry["key"])
    return bool(stored and stored.manifest.metrics.get("resumed_from_step"))


def _corrections(store: Store) -> dict[str, float]:
    """By stage, how much longer than forecast it took when it was last built on this computer."""
    factors: dict[str, float] = {}
    for run in islice(reversed(all_runs(store)), 20):
        told = run.record.get("forecast") or {}
        if told.get("host") != socket.gethostname():
            continue
        for stage, entry in run.record["stages"].items():
            # What was foretold by rates; what was corrected, or told by an earlier run, says nothing of the rates.
            seconds = told.get("by_rates", {}).get(stage)
            is_whole = not entry["cached"] and not entry["shards"]["reused"]
            if stage not in factors and seconds and is_whole and not _was_resumed(store, entry):
                factors[stage] = min(5.0, max(0.2, entry["seconds"] / seconds))
    return factors


def forecast(
    recipe: Recipe,
    nodes: list[Node],
    rows: list[Planned],
    place: Place,
    tell: Callable[[str], None] | None = None,
) -> Forecast:
    """What a run will take.

    Args:
        rows: the plan.
        tell: called if the training is tried first, which takes some seconds; None tries nothing.
    """
    listings = [list_source(source) for source in recipe.ingest.sources]
    shard_bytes = typical_shard_bytes(recipe.ingest, listings)
    sizes = _sizes(recipe, listings, {row.stage: row.metrics for row in rows if row.state == CACHED})
    waiting = {row.stage: row for row in rows if row.state != CACHED}
    train, is_waiting = recipe.train_model, "train_model" in waiting
    speed = foresee_training(recipe, sizes.vocabulary_size, place, tell, is_waiting=is_waiting)

    n_shards = max(1.0, sizes.text_bytes / shard_bytes)
    workers = min(place.machine.n_workers, n_shards)
    work = {
        "train_tokenizer": min(recipe.train_tokenizer.sample_bytes, sizes.kept_bytes),
        "index_benchmarks": _items(recipe, None),
        "export_model": 0.0,
        "ingest": sizes.text_bytes
        * text_bytes_of(recipe, listings, taken=False)
        / max(1.0, text_bytes_of(recipe, listings)),
        "clean": sizes.text_bytes,
    }
    on_model = {
        "evaluate_held_out": sizes.held_out_bytes / sizes.bytes_per_token * speed.token_seconds,
        "evaluate_model": _items(recipe, recipe.evaluate_model.limit)
        * _TOKENS_PER_ITEM
        * speed.token_seconds,
    }
    # Only what no earlier run tells is foretold by rates.
    corrections = _corrections(place.store)
    seconds: dict[str, float] = {}
    by_rates: dict[str, float] = {}
    growth = sizes.text_bytes / max(1.0, _text_bytes_then(recipe, place.store) or sizes.text_bytes)
    for name, row in waiting.items():
        if row.seconds is not None:
            # Of shards that are counted the plan knows how many there are now.
            follows_text = name in _FOLLOW_TEXT and row.shards is None
            seconds[name] = row.seconds * (growth if follows_text else 1.0)
            continue
        if name == "train_model":
            held_out_tokens = min(train.evaluation_tokens, sizes.held_out_bytes / sizes.bytes_per_token)
            steps = train.n_steps * speed.step_seconds
            own = speed.start_seconds + steps + train.evaluations * held_out_tokens * speed.token_seconds
        elif name in on_model:
            own = _RATES[name].start_seconds * speed.slower + on_model[name]
        else:
            rate = _RATES.get(name, _Rate(1.0, 100e6))
            side_by_side = workers if rate.shared else 1
            units = work.get(name, sizes.kept_bytes)
            own = speed.slower * (rate.start_seconds + units / rate.per_second / side_by_side)
        by_rates[name] = own
        seconds[name] = own * corrections.get(name, 1.0)

    total = _total(nodes, seconds)
    parameters = count(recipe.model, sizes.vocabulary_size).total
    memory = max(
        speed.memory_bytes,
        place.machine.n_workers * (250e6 + 10 * min(shard_bytes, sizes.text_bytes)),
    )
    stored = sizes.text_bytes * 1.2 + sizes.kept_bytes / sizes.bytes_per_token * 2.5
    # The next checkpoint is written before an older one goes.
    checkpoints = place.machine.keep_checkpoints + 1
    if place.machine.keep_checkpoint_every_hours:
        hours = seconds.get("train_model", 0.0) / 3600
        checkpoints += int(hours / place.machine.keep_checkpoint_every_hours)
    disk = stored + parameters * (12 * checkpoints + 4 * 4)
    epochs = train.tokens / sizes.tokens if sizes.tokens else 0.0
    advice = _advice(recipe, sizes, epochs, total, seconds, speed, disk, place)
    return Forecast(seconds, by_rates, total, memory, disk, epochs, speed.step_seconds, sizes, advice)


def foretell(run: Run, recipe: Recipe, nodes: list[Node], place: Place) -> None:
    """Write into a run what it will take, so that its report can say what it took beside it. Tries nothing."""
    rows = plan(nodes, place.store, place.sources, previous_entries(place.store, recipe.name))
    run.record["forecast"] = forecast(recipe, nodes, rows, place).as_json()
    run.save()


def with_seconds(rows: list[Planned], foretold: Forecast) -> list[Planned]:
    """The plan with what each stage will take."""
    return [replace(row, seconds=foretold.seconds.get(row.stage, row.seconds)) for row in rows]


def _total(nodes: list[Node], seconds: dict[str, float]) -> float:
    """Seconds of all of it: stages that wait for nothing run side by side, and share the cores."""
    ends: dict[Node, float] = {}
    for node in nodes:
        begins = max((ends.get(other, 0.0) for other in node.inputs.values()), default=0.0)
        ends[node] = begins + seconds.get(node.name, 0.0)
    longest, together = max(ends.values(), default=0.0), sum(seconds.values())
    return (longest + together) / 2 + (_SERVER_SECONDS if seconds else 0.0)


_LONG_SECONDS, _GOOD_SECONDS, MANY_EPOCHS = 3600.0, 2400.0, 6.0


def _advice(
    recipe: Recipe,
    sizes: Sizes,
    epochs: float,
    total: float,
    seconds: dict[str, float],
    speed: Speed,
    disk: float,
    place: Place,
) -> tuple[str, ...]:
    """What a person should think of, each a sentence with field, value and mend."""
    told, train = [speed.caution] if speed.caution else [], recipe.train_model
    if "train_model" in seconds and total > _LONG_SECONDS:
        rest = total - train.n_steps * speed.step_seconds
        steps = max(1, int((_GOOD_SECONDS - rest) / speed.step_seconds))
        tokens = round_down(steps * train.tokens_per_batch)
        fits = train.tokens_per_batch <= tokens < train.tokens
        mend = (
            f"train_model.tokens={tokens:_} takes 40 minutes"
            if fits
            else "take a smaller model, and fewer items of benchmarks (evaluate_model.limit)"
        )
        told.append(f"this takes about {total / 3600:.1f} hours here: {mend}")
    if "train_model" in seconds and epochs > MANY_EPOCHS:
        roughly = "" if sizes.is_counted else "about "
        is_best = train.keep == "best" and train.evaluations
        kept = ", and what you get are the weights of the best step before" if is_best else ""
        told.append(
            f"train_model.tokens ({train.tokens:_}) reads the text {epochs:.1f} times ({roughly}{sizes.tokens:,.0f} tokens): above a "
            f"handful a model learns it by heart{kept}; take {round_down(4 * sizes.tokens):_}, or add text"
        )
    free = shutil.disk_usage(place.store.root).free
    if disk > free:
        told.append(
            f"it needs about {disk / 1e9:.1f} GB below {place.store.root}, where {free / 1e9:.1f} GB are free"
        )
    return tuple(told)


def round_down(value: float) -> int:
    """A whole number of two digits and zeros that is not above the value."""
    whole = int(value)
    unit = 10 ** max(0, len(str(whole)) - 2)
    return whole // unit * unit
