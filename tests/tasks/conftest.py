"""A small tokenizer from real prose, and how documents are written for a stage."""

from pathlib import Path

import pytest

from tasks.engine.stage import Artifact
from tasks.tables import write_table
from tasks.text.documents import DOCUMENTS_SCHEMA
from tasks.text.selection import SELECTION_SCHEMA
from tasks.text.split import selection_row
from tasks.tokens.train_tokenizer import TrainTokenizerConfig, train_tokenizer


def write(folder: Path, texts: list[str], sides: list[str] | None = None) -> tuple[Artifact, Artifact]:
    names = [f"s/{i}" for i in range(len(texts))]
    rows = [
        {"id": name, "text": text, "source": "s", "metadata": "{}"}
        for name, text in zip(names, texts, strict=True)
    ]
    write_table(folder / "documents" / "documents.parquet", rows, DOCUMENTS_SCHEMA)
    chosen = sides or ["train"] * len(texts)
    selected = [
        selection_row(name, text, side) for name, text, side in zip(names, texts, chosen, strict=True)
    ]
    write_table(folder / "selection" / "selection.parquet", selected, SELECTION_SCHEMA)
    return Artifact(folder, (folder / "documents",)), Artifact(folder, (folder / "selection",))


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory, speeches: list[Path]) -> Artifact:
    """A tokenizer of 600 entries from real prose."""
    folder = tmp_path_factory.mktemp("tokenizer")
    documents, selection = write(folder, [path.read_text()[:20_000] for path in speeches[::40]])
    out = folder / "out"
    metrics = train_tokenizer.fn(
        TrainTokenizerConfig(vocabulary_size=600), documents=documents, selection=selection, out=out
    )
    assert metrics["vocabulary_size"] == 600
    return Artifact(out)
