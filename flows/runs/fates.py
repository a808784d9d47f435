"""What became of every document of a run, as tables of a database: duckdb reads the files of the stages where they lie."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import groupby
from pathlib import Path
from typing import Any

import duckdb

from flows.runs.record import Run
from model.errors import InputError
from tasks.engine.store import Store
from tasks.tables import arrow_schema
from tasks.text.documents import DOCUMENTS, DOCUMENTS_SCHEMA
from tasks.text.groups import CLUSTERS, CLUSTERS_SCHEMA
from tasks.text.languages import LANGUAGES, LANGUAGES_SCHEMA
from tasks.text.selection import SELECTION, SELECTION_SCHEMA
from tasks.text.verdicts import VERDICTS, VERDICTS_SCHEMA

COLUMNS = {
    "id": "source, file and row",
    "own_id": "what the document calls itself",
    "source": "name of its source",
    "profile": "how it was cleaned",
    "language": "ISO 639-1, as identified",
    "probability": "of the language",
    "bytes": "of its text as it was read",
    "domain": "of the web, where its metadata have a url",
    "kept": "whether it is in the training or the held-out text",
    "side": "train, validation or dropped",
    "step": "what dropped it",
    "reason": "why, in a few words",
    "field": "of the recipe, that decided",
    "cluster": "id of the document that stands for it and its near-duplicates; empty if it has none",
    "cluster_size": "how many they are",
    "measured": "what was measured",
    "allowed": "what the field allows",
    "text": "as it was read",
    "metadata": "what else was read with it: JSON",
    "shard": "position of its shard",
    "row": "in its shard",
}
"""Columns of the table `documents`, and what is in them."""


def shards_of(run: Run, store: Store, stage: str) -> tuple[Path, ...] | None:
    """The shards of a stage of a run; also of one that failed after its shards were built; None if it did not come to them."""
    if stage in run.record["stages"]:
        return run.stored(store, stage).shard_paths
    claimed = run.record["claimed"].get(stage, {"shards": [None]})
    found = [key and store.find_whole("shards", claimed["stage"], key) for key in claimed["shards"]]
    return tuple(shard.out for shard in found if shard) if found and all(found) else None


def read_stage(run: Run) -> str:
    """The stage that read the documents of a run."""
    return run.node_with_role("read") or "ingest"


def deduplicate_stage(run: Run) -> str:
    """The stage that finds duplicates in the graph of a run."""
    read = read_stage(run)
    default = "deduplicate" if read == "ingest" else f"deduplicate_{read.removeprefix('read_')}"
    return run.node_with_role("deduplicate") or default


class Fates:
    """The documents of a run, as tables: `documents`, and `kept_text` with the text of what cleaning kept.

    A stage to which the run did not come has said nothing yet: then `kept` is empty.

    Raises:
        InputError: if what the run read is not in the store.
    """

    def __init__(self, run: Run, store: Store) -> None:
        self.database = duckdb.connect()
        # Nothing is drawn on a terminal that may be a pipe, and no extension is fetched.
        self.database.execute("SET enable_progress_bar = false; SET autoinstall_known_extensions = false")
        read = run.stored(store, read_stage(run)).shard_paths
        cleans = read_stage(run) == "ingest"
        cleaned = shards_of(run, store, "clean") if cleans else read
        self._table("read", read, DOCUMENTS)
        self._table("clean", cleaned if cleans else None, VERDICTS)
        self._table("languages", cleaned if cleans else None, LANGUAGES)
        self._table("kept_text", cleaned, DOCUMENTS)
        self._table("duplicates", shards_of(run, store, deduplicate_stage(run)), VERDICTS)
        self._table("clusters", shards_of(run, store, deduplicate_stage(run)), CLUSTERS)
        self._table("contaminated", shards_of(run, store, "decontaminate"), VERDICTS)
        self._table("sides", shards_of(run, store, "split"), SELECTION)
        self.database.execute(_DOCUMENTS)
        # From here on it reads what lies below the store, writes nothing, and cannot be told otherwise.
        folder = str(store.root.resolve()).replace("'", "''")
        self.database.execute(f"SET allowed_directories = ['{folder}/artifacts', '{folder}/shards']")
        self.database.execute("SET enable_external_access = false; SET lock_configuration = true")

    def _table(self, name: str, shards: tuple[Path, ...] | None, file: str) -> None:
        """A view of a file of each shard, with shard and row; empty where there is none."""
        places = [(str(shard / file), position) for position, shard in enumerate(shards or ())]
        places = [place for place in places if Path(place[0]).exists()]
        if not places:
            nothing = arrow_schema({"shard": "int64", "row": "int64", **_SCHEMAS[file]}).empty_table()
            self.database.register(name, nothing)
            return
        self.database.execute(f"CREATE TABLE {name}_files (filename VARCHAR, shard BIGINT)")
        self.database.executemany(f"INSERT INTO {name}_files VALUES (?, ?)", list(map(list, places)))
        quoted = ", ".join("'" + path.replace("'", "''") + "'" for path, _ in places)
        self.database.execute(
            f"CREATE VIEW {name} AS SELECT shard, file_row_number AS row, * EXCLUDE (filename, shard, file_row_number) "
            f"FROM read_parquet([{quoted}], filename = true, file_row_number = true) JOIN {name}_files USING (filename)"
        )

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """The rows that a query gives, by column.

        Raises:
            InputError: if it is no query of these tables.
        """
        try:
            found = self.database.execute(query, list(values))
            names = [column[0] for column in found.description or ()]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
        except duckdb.Error as error:
            raise InputError(f"the query cannot be answered: {error}") from error

    def ask(self, query: str, most: int | None) -> tuple[list[dict[str, Any]], int]:
        """What a person asks: the first rows, and how many there are of all. Ctrl-C ends it.

        Args:
            most: rows that are given; all of them if None.

        Raises:
            InputError: if it is not one SELECT, or cannot be answered.
        """
        try:
            statements = self.database.extract_statements(query)
        except duckdb.Error as error:
            raise InputError(f"the query cannot be answered: {error}") from error
        if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
            raise InputError("give one SELECT: a query only asks")
        with ThreadPoolExecutor(1) as pool:
            # In a thread of its own, since in duckdb's code Python hears no Ctrl-C.
            asked = pool.submit(self._ask, statements[0], most)
            try:
                return asked.result()
            except KeyboardInterrupt:
                # DuckDB forgets an interruption that comes before the query runs.
                while not asked.done():
                    self.database.interrupt()
                    wait([asked], timeout=0.05)
                raise

    def _ask(self, statement: Any, most: int | None) -> tuple[list[dict[str, Any]], int]:
        try:
            found = self.database.execute(statement)
            names = _different([column[0] for column in found.description])
            rows = found.fetchall() if most is None else found.fetchmany(most)
            n_rows = len(rows)
            while batch := found.fetchmany(_ROWS_AT_ONCE):
                n_rows += len(batch)
        except (duckdb.Error, MemoryError) as error:
            raise InputError(f"the query cannot be answered: {error}") from error
        return [dict(zip(names, row, strict=True)) for row in rows], n_rows


_ROWS_AT_ONCE = 10_000


def _different(names: list[str]) -> list[str]:
    """Names of columns, none of which comes twice: of a second one of a name the place is added."""
    return [name if name not in names[:place] else f"{name}_{place + 1}" for place, name in enumerate(names)]


_SCHEMAS = {
    DOCUMENTS: DOCUMENTS_SCHEMA,
    VERDICTS: VERDICTS_SCHEMA,
    LANGUAGES: LANGUAGES_SCHEMA,
    SELECTION: SELECTION_SCHEMA,
    CLUSTERS: CLUSTERS_SCHEMA,
}

_DOCUMENTS = """
CREATE VIEW documents AS
SELECT read.id, read.own_id, read.source, read.profile, languages.language, languages.probability,
    strlen(read.text) AS bytes,
    nullif(regexp_extract(read.metadata, '"url": ?"https?://([^/":]+)', 1), '') AS domain,
    CASE WHEN NOT clean.kept THEN false ELSE sides.side IN ('train', 'validation') END AS kept,
    coalesce(sides.side, CASE WHEN NOT clean.kept THEN 'dropped' END) AS side,
    CASE WHEN NOT clean.kept THEN 'clean.' || clean.step
        WHEN NOT duplicates.kept THEN 'deduplicate'
        WHEN NOT contaminated.kept THEN 'decontaminate'
        WHEN sides.side = 'dropped' THEN 'split' END AS step,
    CASE WHEN NOT clean.kept THEN clean.reason
        WHEN NOT duplicates.kept THEN duplicates.reason
        WHEN NOT contaminated.kept THEN contaminated.reason
        WHEN sides.side = 'dropped' THEN sides.reason END AS reason,
    clean.field, clean.value AS measured, clean."limit" AS allowed, clusters.cluster, clusters.cluster_size,
    read.text, read.metadata, read.shard, read.row
FROM read
LEFT JOIN clean ON clean.shard = read.shard AND clean.row = read.row
LEFT JOIN languages ON languages.shard = read.shard AND languages.row = read.row
LEFT JOIN (SELECT shard, row, id FROM kept_text) AS cleaned ON cleaned.id = read.id
LEFT JOIN duplicates ON duplicates.shard = cleaned.shard AND duplicates.row = cleaned.row
LEFT JOIN clusters ON clusters.shard = cleaned.shard AND clusters.row = cleaned.row
LEFT JOIN contaminated ON contaminated.shard = cleaned.shard AND contaminated.row = cleaned.row
LEFT JOIN sides ON sides.shard = cleaned.shard AND sides.row = cleaned.row
"""


def samples(
    fates: Fates,
    n: int,
    *,
    dropped_by: str | None = None,
    kept: bool = False,
    source: str | None = None,
    language: str | None = None,
) -> list[dict[str, Any]]:
    """Some documents of a kind, the same ones each time, with the values that decided.

    Args:
        dropped_by: beginning of the name of a step, such as deduplicate or clean.repetition.

    Raises:
        InputError: if there is none.
    """
    wanted: list[tuple[str, Any]] = [
        ("starts_with(step, ?)", dropped_by and _step_of(fates, dropped_by)),
        ("kept = ?", kept or None),
        ("source = ?", source),
        ("language = ?", language),
    ]
    chosen = [(condition, value) for condition, value in wanted if value is not None]
    where = " AND ".join(condition for condition, _ in chosen) or "true"
    values = [value for _, value in chosen]
    found = fates.rows(f"SELECT * FROM documents WHERE {where} ORDER BY hash(id), id LIMIT {int(n)}", *values)
    if not found:
        raise InputError("no document of the run is so")
    return found


def dropped_examples(fates: Fates, n: int, most_characters: int) -> dict[str, list[dict[str, Any]]]:
    """For each step that dropped documents some of them, with the beginning of their text; the same ones each time."""
    found = fates.rows(
        "SELECT step, id, reason, field, measured, allowed, left(text, ?) AS text FROM documents WHERE step IS NOT NULL "
        "QUALIFY row_number() OVER (PARTITION BY step ORDER BY hash(id), id) <= ? ORDER BY step, id",
        most_characters,
        n,
    )
    return {step: list(rows) for step, rows in groupby(found, lambda row: str(row["step"]))}


def _step_of(fates: Fates, name: str) -> str:
    """The step that a person means: clean.repetition may be said as repetition.

    Raises:
        InputError: if no step that dropped anything begins so.
    """
    steps = [row["step"] for row in fates.rows("SELECT DISTINCT step FROM documents WHERE step IS NOT NULL")]
    for full in (name, f"clean.{name}"):
        if any(step.startswith(full) for step in steps):
            return full
    told = ", ".join(sorted(steps)) or "none"
    raise InputError(f"no document was dropped by {name!r}; steps that dropped some are: {told}")


STATISTICS: Sequence[tuple[str, str]] = (
    (
        "by source",
        "SELECT source, count(*) AS documents, sum(bytes) AS bytes, "
        "count(*) FILTER (kept) AS kept, sum(bytes) FILTER (kept) AS kept_bytes, "
        "count(*) FILTER (step = 'deduplicate') AS duplicates FROM documents GROUP BY source ORDER BY bytes DESC",
    ),
    (
        "by language",
        "SELECT coalesce(nullif(language, ''), 'unknown') AS language, count(*) AS documents, sum(bytes) AS bytes, "
        "count(*) FILTER (kept) AS kept, round(avg(probability), 3) AS probability "
        "FROM documents GROUP BY ALL ORDER BY bytes DESC LIMIT 20",
    ),
    (
        "lengths, bytes",
        "SELECT source, min(bytes) AS least, quantile_disc(bytes, 0.1) AS tenth, quantile_disc(bytes, 0.5) AS median, "
        "quantile_disc(bytes, 0.9) AS ninth_tenth, max(bytes) AS most FROM documents GROUP BY source ORDER BY source",
    ),
    (
        "what was dropped",
        "SELECT step, reason, count(*) AS documents, sum(bytes) AS bytes "
        "FROM documents WHERE step IS NOT NULL GROUP BY ALL ORDER BY documents DESC LIMIT 30",
    ),
    (
        "domains",
        "SELECT domain, count(*) AS documents, sum(bytes) AS bytes, count(*) FILTER (kept) AS kept "
        "FROM documents WHERE domain IS NOT NULL GROUP BY domain ORDER BY documents DESC LIMIT 20",
    ),
)
"""What `stats` shows: a head, and the query."""
