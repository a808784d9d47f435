"""snapshot_model: a copy of a Hugging Face folder, so that what was measured stays what it was."""

import shutil
from pathlib import Path
from typing import Any

from pydantic import Field

from model.base_config import Config
from model.errors import InputError
from tasks.engine.keys import LOCATION
from tasks.engine.sources import SourceDigests
from tasks.engine.stage import Metrics, stage

_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja")


class SnapshotModelConfig(Config):
    """Which folder."""

    path: str = Field(
        description="A Hugging Face folder with config.json, safetensors and tokenizer.json.",
        json_schema_extra=LOCATION,
    )


def _files(config: SnapshotModelConfig) -> list[Path]:
    """The files that transformers may read: no pickles, no code.

    Raises:
        InputError: if the folder is not a model.
    """
    folder = Path(config.path).expanduser()
    files = sorted(path for path in folder.glob("*") if path.is_file() and path.suffix in _SUFFIXES)
    for wanted, mend in (
        ("config.json", "give the folder of a model"),
        (".safetensors", "convert the weights: pickles are never loaded"),
        ("tokenizer.json", "save its fast tokenizer there"),
    ):
        if not any(path.name.endswith(wanted) for path in files):
            raise InputError(f"the model folder {config.path!r} holds no {wanted}: {mend}")
    return files


def fingerprint_model(config: SnapshotModelConfig, digests: SourceDigests) -> Any:
    """Names, sizes and digests of the files."""
    return digests.files(Path(config.path).expanduser(), _files(config))


@stage(fingerprint=fingerprint_model)
def snapshot_model(config: SnapshotModelConfig, out: Path) -> Metrics:
    """Copy the files of the model.

    Raises:
        InputError: if the folder is not a model.
    """
    files = _files(config)
    for path in files:
        shutil.copyfile(path, out / path.name)
    return {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}
