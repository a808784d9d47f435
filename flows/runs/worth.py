"""What a part of a recipe is worth: texts compared, and models that were trained with it and without it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from flows.runs.record import Run
from tasks.engine.store import Store
from tasks.evaluation.held_out import HELD_OUT
from tasks.tables import read_table
from tasks.text.documents import DOCUMENTS
from tasks.text.groups import GROUPS
from tasks.text.selection import SELECTION, TRAIN, VALIDATION

WORTH = "worth"
"""Where it stands in run.json."""
_SAMPLES, _SAMPLE_CHARACTERS = 3, 300
_NORMAL_95 = 1.96

WITHOUT = "_without"
"""At the end of the name of a node that belongs to the text, or to a model, without it."""


def train_name(seed: int, without: bool) -> str:
    """Name of the node that trains one of the models."""
    return f"train_{seed}{WITHOUT if without else ''}"


def export_name(seed: int, without: bool) -> str:
    """Name of the node that exports it."""
    return f"export_{seed}{WITHOUT if without else ''}"


def held_out_name(seed: int, without: bool, other: bool) -> str:
    """Name of the node that measures one of the models.

    Args:
        without: the model that was trained without.
        other: on what is held out of the text without; else of the run's own.
    """
    return f"{'other_' if other else ''}held_out_{seed}{WITHOUT if without else ''}"


@dataclass(frozen=True)
class Difference:
    """Models with and models without, on the same held-out documents; in bits per byte.

    Attributes:
        having, without: mean over seeds.
        worth: how much more the models without it need.
        by_seeds: half of the 95% interval that other seeds leave open.
        by_documents: the same of other documents.
    """

    documents: int
    having: float
    without: float
    by_seeds: float
    by_documents: float

    @property
    def worth(self) -> float:
        """How much more the models without it need."""
        return self.without - self.having

    @property
    def noise(self) -> float:
        """Half of the 95% interval, for seeds and documents together."""
        return float(np.hypot(self.by_seeds, self.by_documents))

    def as_json(self) -> dict[str, Any]:
        """What run.json keeps of it."""
        return {
            **vars(self),
            "worth": self.worth,
            "noise": self.noise,
            "is_resolved": abs(self.worth) > self.noise,
        }


def difference_of(having: Any, without: Any, n_bytes: Any) -> Difference:
    """Difference of two groups of models on the same documents.

    Seeds: the two-sample t interval with pooled variance. Documents: the ratio estimator (Cochran 1977, section 6.3),
    of what the models of a group need on average.

    Args:
        having, without: nats by seed and document, at least two of each: (seeds, documents).
        n_bytes: of each document: (documents,).
    """
    from scipy.stats import t

    bits_with, bits_without = (nats / np.log(2) for nats in (having, without))
    n_seeds, n_documents, total = len(having), len(n_bytes), n_bytes.sum()
    of_seeds = [bits.sum(1) / total for bits in (bits_with, bits_without)]
    variance = float(sum(values.var(ddof=1) for values in of_seeds)) / n_seeds
    by_seeds = float(t.ppf(0.975, 2 * n_seeds - 2)) * variance**0.5
    gains = (bits_without - bits_with).mean(0)
    residuals = gains - gains.sum() / total * n_bytes
    scale = n_documents / (n_documents - 1)
    by_documents = _NORMAL_95 * float(np.sqrt(scale * (residuals**2).sum())) / float(total)
    having_mean, without_mean = (float(values.mean()) for values in of_seeds)
    return Difference(n_documents, having_mean, without_mean, by_seeds, by_documents)


class _Ablation:
    """A finished run of ablate, and what it left in the store."""

    def __init__(self, run: Run, store: Store) -> None:
        self.run, self.store = run, store
        self.n_seeds: int = run.record["seeds"]
        self.differs = f"split{WITHOUT}" in run.record["stages"]

    def shards(self, name: str, without: bool) -> tuple[Path, ...]:
        """The shards of a stage of one of the two texts."""
        own = f"{name}{WITHOUT}"
        is_apart = without and own in self.run.record["stages"]
        return self.run.stored(self.store, own if is_apart else name).shard_paths

    def files(self, name: str, file: str, without: bool) -> list[str]:
        """A file of each shard of a stage."""
        return [str(shard / file) for shard in self.shards(name, without)]

    def nats(self, without: bool, other: bool) -> list[dict[str, tuple[float, int]]]:
        """Nats and bytes by document, of each model."""
        models = []
        for seed in range(self.n_seeds):
            folder = self.run.stored(self.store, held_out_name(seed, without, other)).out
            sums: dict[str, tuple[float, int]] = {}
            for row in read_table(folder / HELD_OUT, ["id", "nats", "bytes"]).to_pylist():
                nats, n_bytes = sums.get(row["id"], (0.0, 0))
                sums[row["id"]] = (nats + row["nats"], n_bytes + row["bytes"])
            models.append(sums)
        return models

    def groups(self, without: bool) -> dict[str, int]:
        """By document of one of the two texts the number of those that are alike to it."""
        found: dict[str, int] = {}
        shards = (self.shards(name, without) for name in ("split", "deduplicate"))
        for selection, duplicates in zip(*shards, strict=True):
            names = read_table(selection / SELECTION, ["id"]).column("id").to_pylist()
            draws = read_table(duplicates / GROUPS, ["draw"]).column("draw").to_pylist()
            found.update(zip(names, draws, strict=True))
        return found

    def ids(self, side: str, without: bool) -> set[str]:
        """The documents on a side of one of the two texts."""
        files = self.files("split", SELECTION, without)
        rows = duckdb.execute("SELECT id FROM read_parquet(?) WHERE side = ?", [files, side]).fetchall()
        return {identifier for (identifier,) in rows}


def worth_of(run: Run, store: Store) -> dict[str, Any]:
    """What a finished run of ablate found out, in JSON types: for run.json, the terminal and the report."""
    done = _Ablation(run, store)
    measured: dict[str, dict[str, Any]] = {}
    what = run.record["without"]
    own = _differences(done, other=False)
    if own:
        measured["the text with it"] = own[""].as_json()
    if done.differs:
        others = _differences(done, other=True)
        if others:
            measured["the text without it"] = others[""].as_json()
    sources = {name: one for name, one in own.items() if name}
    for name, one in sources.items() if len(sources) > 1 else ():
        measured[f"with it, {name}"] = one.as_json()
    training = run.stored(store, train_name(0, False)).manifest.metrics
    texts = _texts(done) if done.differs else {}
    return {
        "without": what,
        "seeds": done.n_seeds,
        "tokens": training["tokens"],
        "steps": training["steps"],
        "texts": texts,
        "differences": measured,
        "sentence": _sentence(what, own.get(""), done.n_seeds, training["tokens"], texts),
    }


def judges(held_out: Iterable[str], trained_on: set[str], groups_of: dict[str, int]) -> list[str]:
    """The held-out documents that neither are trained on in the other text nor are alike to one that is.

    A copy in another source is dropped beside what is held out, and trained on where the source of that is left out.

    Args:
        groups_of: number of the group of documents that are alike, by document of the text that holds out.
    """
    taken = {groups_of[identifier] for identifier in trained_on if identifier in groups_of}
    return sorted(
        identifier
        for identifier in held_out
        if identifier not in trained_on and groups_of[identifier] not in taken
    )


def _differences(done: _Ablation, *, other: bool) -> dict[str, Difference]:
    """Differences on what is held out of one of the two texts, and neither it nor its like trained on in the other: of all
    sources under the name "", and of each."""
    trained_on, groups_of = done.ids(TRAIN, not other), done.groups(other)
    having, without = (done.nats(is_without, other) for is_without in (False, True))
    ids = judges(having[0], trained_on, groups_of)
    groups = {"": ids}
    for identifier in ids:
        groups.setdefault(identifier.split("/")[0], []).append(identifier)

    def of(documents: list[str]) -> Difference:
        first, second = (
            np.array([[model[name][0] for name in documents] for model in models])
            for models in (having, without)
        )
        n_bytes = np.array([having[0][name][1] for name in documents], np.float64)
        return difference_of(first, second, n_bytes)

    return {name: of(documents) for name, documents in groups.items() if len(documents) > 1}


def _sentence(what: str, one: Difference | None, n_seeds: int, tokens: int, texts: dict[str, Any]) -> str:
    same = "in both, the same"
    if texts and not any(count for kind, count in texts["documents"].items() if kind != same):
        return f"{what} changes nothing of this training text: it is the same without it"
    budget = f"{n_seeds} trainings of {tokens:,} tokens each, with and without"
    if one is None:
        return f"{what}: fewer than two documents are held out of both texts, so nothing can be said"
    if abs(one.worth) <= one.noise:
        return (
            f"{what}: not resolvable below {one.noise:.4f} bits per byte with this budget ({budget}); measured was "
            f"{one.worth:+.4f}"
        )
    verb = "is worth" if one.worth > 0 else "costs"
    return f"{what} {verb} {abs(one.worth):.4f} +- {one.noise:.4f} bits per byte of held-out text ({budget})"


_JOINED = """
CREATE TABLE joined AS
SELECT coalesce(ours.id, theirs.id) AS id, ours.side = $side AS in_ours, theirs.side = $side AS in_theirs,
    ours.text_digest = theirs.text_digest AS is_same
FROM read_parquet($ours) AS ours FULL JOIN read_parquet($theirs) AS theirs ON ours.id = theirs.id
"""
_KINDS = {
    "only with": "coalesce(in_ours, false) AND NOT coalesce(in_theirs, false)",
    "only without": "coalesce(in_theirs, false) AND NOT coalesce(in_ours, false)",
    "changed": "in_ours AND in_theirs AND NOT is_same",
    "in both, the same": "in_ours AND in_theirs AND is_same",
}


def _texts(done: _Ablation) -> dict[str, Any]:
    """How the training text differs: documents of each kind, tokens, and some of the documents."""
    database = duckdb.connect()
    database.execute("SET enable_progress_bar = false")
    ours, theirs = (done.files("split", SELECTION, without) for without in (False, True))
    database.execute(_JOINED, {"side": TRAIN, "ours": ours, "theirs": theirs})
    counts, examples = {}, {}
    for kind, condition in _KINDS.items():
        counts[kind] = _first(database, f"SELECT count(*) FROM joined WHERE {condition}", {})
        if counts[kind] and not kind.startswith("in both"):
            examples[kind] = _examples(database, done, condition, without=kind != "only with")
    tokens = {
        head: done.run.stored(done.store, name).manifest.metrics[TRAIN]["tokens"]
        for head, name in (("with", "tokenize"), ("without", f"tokenize{WITHOUT}"))
    }
    held_out = {
        head: len(done.ids(VALIDATION, without)) for head, without in (("with", False), ("without", True))
    }
    return {"documents": counts, "tokens": tokens, "held_out": held_out, "examples": examples}


def _first(database: Any, query: str, values: dict[str, Any]) -> int:
    row = database.execute(query, values).fetchone()
    assert row is not None
    return int(row[0])


def _examples(database: Any, done: _Ablation, condition: str, *, without: bool) -> list[dict[str, str]]:
    """Some documents of a kind, the same ones each time, with the beginning of their text as it is learnt."""
    rows = database.execute(
        f"SELECT id, left(text, $most) FROM read_parquet($documents) WHERE id IN (SELECT id FROM joined WHERE {condition} "
        "ORDER BY hash(id), id LIMIT $n) ORDER BY id",
        {
            "most": _SAMPLE_CHARACTERS,
            "n": _SAMPLES,
            "documents": done.files("clean", DOCUMENTS, without),
        },
    ).fetchall()
    return [{"id": identifier, "text": text} for identifier, text in rows]
