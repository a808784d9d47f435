"""The model that a fine-tuning goes on from: of an earlier run, or of a Hugging Face folder."""

import json
from dataclasses import dataclass
from pathlib import Path

from flows.runs.record import Run, find_model, finished_runs
from model.config import ModelConfig
from model.errors import InputError
from model.hugging_face import model_config_of, read_config
from tasks.engine.stage import Node
from tasks.engine.store import Store
from tasks.training.import_model import import_model
from tasks.training.snapshot_model import SnapshotModelConfig, snapshot_model

_TEXT = ("ingest", "split", "tokenize")


@dataclass(frozen=True)
class Base:
    """The model to go on from.

    Attributes:
        text: what a run was trained on: documents, selection and tokens; empty for a folder.
    """

    model: Node
    tokenizer: Node
    exported: Node
    shape: ModelConfig
    text: dict[str, Node]


def is_model_folder(folder: Path) -> bool:
    """Whether it is a folder with a model; a folder of text may have the name of the recipe that reads it."""
    return (folder / "config.json").is_file()


def open_base(name: str, store: Store) -> Base:
    """The nodes of a base model.

    Raises:
        InputError: if there is no such run or folder, or it cannot be ours.
    """
    folder = Path(name).expanduser()
    if is_model_folder(folder):
        shape = model_config_of(read_config(folder, "base: "), f"base: {folder / 'config.json'}")
        exported = snapshot_model(SnapshotModelConfig(path=name)).named("base_folder")
        imported = import_model(folder=exported).named("base_model")
        return Base(imported, imported, exported, shape, {})
    run = _find_base(name, store)
    stages = run.record["stages"]
    trained = run.node_with_role("train") or "train_model"
    tokenizer = next(
        (name for name in ("train_tokenizer", "base_tokenizer", "base_model") if name in stages),
        "train_tokenizer",
    )
    description = json.loads((run.stored(store, trained).out / "model.json").read_text())
    has_text = all(name in stages for name in _TEXT)
    wanted = {"base_tokenizer": tokenizer, "base_export": "export_model"}
    wanted |= {f"base_{name}": name for name in _TEXT if has_text}
    for stage in wanted.values():
        run.stored(store, stage)  # now, and not in the middle of a run, it is said that a result is gone
    return Base(
        run.node(trained, "base_model"),
        run.node(tokenizer, "base_tokenizer"),
        run.node("export_model", "base_export"),
        ModelConfig.model_validate(description["model"]),
        {name: run.node(name, f"base_{name}") for name in _TEXT} if has_text else {},
    )


def _find_base(name: str, store: Store) -> Run:
    """The run that a base names. A fine-tuning is never what `latest` means: run again, it would go on from its own result."""
    if name == "latest":
        for run in finished_runs(store):
            if run.record["flow"] in ("pretrain", "retrain"):
                return run
    try:
        model = _run_or_folder(name, store)
    except InputError as error:
        raise InputError(f"base: {error}") from None
    assert isinstance(model, Run)
    return model


def _run_or_folder(name: str, store: Store) -> Run | Path:
    """What a person means by a model.

    Raises:
        InputError: if it is neither.
    """
    folder = Path(name).expanduser()
    if is_model_folder(folder):
        return folder
    try:
        return find_model(store, name)
    except InputError as error:
        no_model = f"the folder {name!r} holds no config.json, so no model"
        sentence = no_model if folder.is_dir() else f"there is no folder {name!r}"
        raise InputError(f"{error}; and {sentence}") from None


def model_node(name: str, store: Store) -> Node:
    """The exported model of a run, or a Hugging Face folder, as a node.

    Raises:
        InputError: if it is neither.
    """
    model = _run_or_folder(name, store)
    if isinstance(model, Path):
        return snapshot_model(SnapshotModelConfig(path=name))
    model.stored(store, "export_model")
    return model.node("export_model", "model")


def model_folder(name: str, store: Store) -> Path:
    """The Hugging Face folder that a person means: a folder, or the export of a run.

    Raises:
        InputError: if it is neither.
    """
    model = _run_or_folder(name, store)
    return model if isinstance(model, Path) else model.stored(store, "export_model").out
