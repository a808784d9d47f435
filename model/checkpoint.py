"""Training checkpoints that are whole or do not exist.

DeepSpeed writes into a hidden folder; rank 0 then records size and SHA-256 of every file
and renames the folder. What a kill leaves behind is hidden, and what bit rot leaves behind
does not match its record: neither is ever resumed from.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from model.errors import InputError
from model.files import fsync_path, read_json, sha256_of_file

MANIFEST = "checkpoint.json"


class ResumeError(InputError):
    """A checkpoint exists, but not for this machine or this recipe."""


def _is_valid(folder: Path) -> bool:
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        return all(
            (folder / name).stat().st_size == size and sha256_of_file(folder / name) == digest
            for name, (size, digest) in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _check_owner(folder: Path) -> None:
    """Refuse checkpoints that somebody else may have written: they are pickles, which can hold any program.

    Raises:
        ResumeError: unless the folder is ours, and nobody else may write to it.
    """
    status = os.stat(folder)
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ResumeError(
            f"{folder} belongs to another account, or others may write to it, and what is in it would be run: if it is "
            f"yours, `chown -R $(id -u) {folder} && chmod -R go-w {folder}`; else remove it to train from the start"
        )


def newest_checkpoint(folder: Path) -> Path | None:
    """The valid checkpoint with the most steps below `folder`, if there is one."""
    newest_first = sorted(folder.glob("step-*"), key=lambda path: path.name, reverse=True)
    return next((path for path in newest_first if _is_valid(path)), None)


def checkpoint_states(folder: Path) -> list[dict[str, Any]]:
    """What the checkpoints below `folder` know beside their weights; of a damaged one nothing."""
    manifests = [read_json(path) for path in sorted(folder.glob(f"step-*/{MANIFEST}"))]
    return [
        manifest["state"]
        for manifest in manifests
        if isinstance(manifest, dict) and isinstance(manifest.get("state"), dict)
    ]


def save_checkpoint(
    engine: Any,
    folder: Path,
    step: int,
    state: dict[str, Any],
    keep: int,
    save_more: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Save the engine after `step` steps as `folder`/step-NNNNNNNN; every rank calls it.

    Args:
        engine: a DeepSpeed engine.
        folder: where checkpoints live; readable by its owner only, since DeepSpeed's files are pickles.
        step: number of finished steps.
        state: JSON values to find again at resume.
        keep: newest checkpoints that stay on disk.
        save_more: called by the first rank with the folder of the checkpoint, to write what else belongs to it.
    """
    final, building = folder / f"step-{step:08d}", folder / f".building-{step:08d}"
    if dist.get_rank() == 0:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for stale in folder.glob(".building-*"):
            shutil.rmtree(stale)
    dist.barrier()
    engine.save_checkpoint(str(folder), tag=building.name, client_state={}, save_latest=False)
    dist.barrier()
    if dist.get_rank() == 0:
        save_more(building)
        files = {}
        for path in sorted(path for path in building.rglob("*") if path.is_file()):
            fsync_path(path)
            files[path.relative_to(building).as_posix()] = (path.stat().st_size, sha256_of_file(path))
        manifest = {"step": step, "state": state, "files": files}
        (building / MANIFEST).write_text(json.dumps(manifest))
        fsync_path(building / MANIFEST)
        if final.exists():
            shutil.rmtree(final)
        os.rename(building, final)
        fsync_path(folder)
        for old in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    dist.barrier()
    return final


def load_checkpoint(
    engine: Any,
    folder: Path,
    *,
    ranks: int,
    zero_stage: int,
    load_more: Callable[[Path], None] = lambda folder: None,
) -> tuple[int, dict[str, Any]]:
    """Load the newest valid checkpoint into the engine; every rank calls it.

    Args:
        load_more: called with the folder of the checkpoint, to read what `save_more` wrote.

    Returns:
        Number of finished steps and the saved state; (0, {}) if there is no checkpoint.

    Raises:
        ResumeError: if the checkpoint was written with another ZeRO stage, or with another
            number of ranks at a stage other than 0.
    """
    chosen = [str(newest_checkpoint(folder) or "") if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(chosen, src=0)
    if not chosen[0]:
        return 0, {}
    checkpoint = Path(chosen[0])
    _check_owner(folder)
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    state = manifest["state"]
    if state["zero_stage"] != zero_stage or (zero_stage and state["ranks"] != ranks):
        raise ResumeError(
            f"the checkpoint {checkpoint} was written at zero_stage {state['zero_stage']} with {state['ranks']} ranks and "
            f"cannot go on at zero_stage {zero_stage} with {ranks}: set machine.zero_stage and machine.ranks back, "
            f"or delete {folder} to train from the start"
        )
    path, _ = engine.load_checkpoint(str(folder), tag=checkpoint.name)
    if path is None:
        raise ResumeError(
            f"DeepSpeed could not read the checkpoint {checkpoint}: delete it to go on from an older one"
        )
    load_more(checkpoint)
    return manifest["step"], state
