"""Training checkpoints that are whole or do not exist, are written while training goes on, and fit any number of ranks.

Each rank writes the pieces of weights and moments that it holds, by the name of the weight and the place of the piece in
it, so that ranks that hold other pieces can read them: see `model.masters`. A thread of each rank writes a copy; once all
are written, the first rank's thread records size and XXH3 of every file, with a checksum of the record, and renames the folder. What a
kill leaves behind is hidden, and what bit rot leaves behind does not match its record: neither is ever resumed from. The files
are safetensors: numbers, no programs.
"""

import hashlib
import json
import math
import os
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from safetensors import safe_open
from torch import Tensor

from model.errors import InputError, StageFailed
from model.files import fsync_path, read_json, read_record, write_record, write_whole
from model.masters import Masters

MANIFEST, _FOLDER = "checkpoint.json", "step-{step:08d}"
_PIECES, _WRITTEN = "rank-{rank:05d}.safetensors", "rank-{rank:05d}.json"
_WEIGHT, _AVERAGE = "weight", "average"
_DAMAGED = ".damaged-"
_POLL_SECONDS = 0.02


class ResumeError(InputError):
    """A checkpoint exists, but not for this recipe."""


def xxh3_of_file(path: Path) -> str:
    """XXH3 (128 bits) of a file's content: 32 hexadecimal digits. Finds what went wrong by itself, not what somebody forged:
    what is published, the trained weights, has SHA-256 in the store, and whoever writes into a folder of checkpoints may write the
    digest, too."""
    digest: Any = xxhash.xxh3_128
    with path.open("rb") as file:
        return hashlib.file_digest(file, digest).hexdigest()


def _is_valid(folder: Path) -> bool:
    """Whether a checkpoint is whole.

    Raises:
        StageFailed: if that cannot be told now: a disk or a server that does not answer damages nothing.
    """
    try:
        record = read_record(folder / MANIFEST)
        return folder.name == _FOLDER.format(step=record["step"]) and all(
            (folder / name).stat().st_size == size and xxh3_of_file(folder / name) == digest
            for name, (size, digest) in record["files"].items()
        )
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, KeyError, TypeError):
        return False
    except OSError as error:
        raise StageFailed(
            f"the checkpoint {folder} cannot be read now ({error}): try again; if it stays so, delete that folder, and the training "
            "goes on from the one before",
            retryable=True,
        ) from error


def _newest_first(folder: Path) -> list[Path]:
    """Checkpoints below `folder`, whole or not.

    Raises:
        OSError: if it cannot be listed now, of which `Path.glob` would make none at all.
    """
    with suppress(FileNotFoundError):
        return [
            folder / name for name in sorted(os.listdir(folder), reverse=True) if name.startswith("step-")
        ]
    return []


def newest_checkpoint(folder: Path) -> Path | None:
    """The valid checkpoint with the most steps below `folder`, if there is one."""
    return next((path for path in _newest_first(folder) if _is_valid(path)), None)


def checkpoint_states(folder: Path) -> list[dict[str, Any]]:
    """What the checkpoints below `folder` know beside their weights; of a damaged one nothing.

    Raises:
        OSError: if one is there and cannot be read at this moment.
    """
    states = []
    for path in reversed(_newest_first(folder)):
        with suppress(FileNotFoundError, ValueError):
            states.append(read_record(path / MANIFEST)["state"])
    return states


class Checkpoints:
    """Writes the state of a training beside it, and reads it back. Every rank has one, and calls the same.

    Args:
        folder: where checkpoints live.
        masters: the weights that the optimizer moves.
        optimizer: whose moments belong to them.
        averages: for each of the masters' tensors an average of it, or nothing.
        keep: newest checkpoints that stay on disk.
        keep_every_seconds: of the older ones, one of so many seconds stays; 0 keeps none of them.
    """

    def __init__(
        self,
        folder: Path,
        masters: Masters,
        optimizer: torch.optim.Optimizer,
        averages: list[Tensor],
        keep: int,
        keep_every_seconds: float = 0.0,
    ) -> None:
        self.folder, self.masters, self.optimizer, self.averages = folder, masters, optimizer, averages
        self.keep, self.keep_every_seconds = keep, keep_every_seconds
        self.latest: int | None = None
        self.damaged: list[int] = []
        self.thread: threading.Thread | None = None
        self.failure: Exception | None = None

    @property
    def is_writing(self) -> bool:
        """Whether one is being written; raises what became of it if that was no good."""
        if self.failure:
            raise self.failure
        return self.thread is not None and self.thread.is_alive()

    def wait(self) -> None:
        """Until the last one is whole, everywhere."""
        if self.thread:
            self.thread.join()
        if self.failure:
            raise self.failure
        dist.barrier()

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Begin to write what there is after `step` steps, as `folder`/step-NNNNNNNN; copies it, and returns.

        The one before must be whole: `wait` for it. Of a step of which there is one no other is written: it would say the same, and
        one of them would have to go before the other is there.

        Args:
            state: JSON values to find again at resume.
        """
        if step == self.latest:
            return
        self.latest = step
        building = self.folder / f".building-{step:08d}"
        if self.masters.rank == 0:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            building.mkdir()
        dist.barrier()
        pieces, scalars = self._copy()
        # A copy of the state, too: it goes on changing.
        manifest = json.loads(json.dumps({"step": step, "state": state, "scalars": scalars}))
        # A daemon: the thread that trains waits for it where it has to, and must not be kept by it when it fails.
        self.thread = threading.Thread(target=self._write, args=(building, pieces, manifest), daemon=True)
        self.thread.start()

    def _copy(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The pieces of this rank in memory of their own, and the optimizer's scalars with the weights that they belong to."""
        pieces: dict[str, Tensor] = {}
        scalars: dict[str, Any] = {}
        averages: Sequence[Tensor | None] = self.averages or [None] * len(self.masters.all)
        for master, average in zip(self.masters.all, averages, strict=True):
            values = {_WEIGHT: master.tensor} | self.optimizer.state.get(master.tensor, {})
            if average is not None:
                values[_AVERAGE] = average
            for kind, value in values.items():
                if value.shape == master.tensor.shape:
                    for name, start, part in self.masters.own_pieces(master, value):
                        pieces[f"{kind}:{name}:{start}"] = part.to("cpu", copy=True)
                else:
                    scalar = scalars.setdefault(kind, {"value": float(value), "weights": []})
                    scalar["weights"] += [placed.name for placed in master.weights]
        return pieces, scalars

    def _write(self, building: Path, pieces: dict[str, Tensor], manifest: dict[str, Any]) -> None:
        try:
            written = _write_pieces(pieces, building / _PIECES.format(rank=self.masters.rank))
            write_whole(building / _WRITTEN.format(rank=self.masters.rank), json.dumps(written))
            if self.masters.rank == 0:
                self._publish(building, manifest)
        except Exception as error:  # raised by the next call, on the thread that trains
            self.failure = error

    def _publish(self, building: Path, manifest: dict[str, Any]) -> None:
        """Wait for the files of all ranks, write what they are, and give the folder its name."""
        files = {}
        for rank in range(self.masters.ranks):
            told = building / _WRITTEN.format(rank=rank)
            while (written := read_json(told)) is None:
                time.sleep(_POLL_SECONDS)
            told.unlink()
            files[_PIECES.format(rank=rank)] = written
        write_record(building / MANIFEST, manifest | {"files": files})
        os.rename(building, self.folder / _FOLDER.format(step=manifest["step"]))
        fsync_path(self.folder)
        for old in self._outdated():
            shutil.rmtree(old)

    def _outdated(self) -> list[Path]:
        """Checkpoints that are not kept any more."""
        older = sorted(self.folder.glob("step-*"))[: -self.keep]
        if not self.keep_every_seconds:
            return older
        outdated, kept_at = [], -math.inf
        for folder in older:
            try:
                written_at = (folder / MANIFEST).stat().st_mtime
            except FileNotFoundError:
                written_at = -math.inf  # it is none
            if written_at - kept_at >= self.keep_every_seconds:
                kept_at = written_at
            else:
                outdated.append(folder)
        return outdated

    def _choose(self) -> str:
        """The newest checkpoint that is whole, once what is later, and so damaged, is gone, and what a kill left behind."""
        newest = ""
        for folder in _newest_first(self.folder):
            if _is_valid(folder):
                newest = str(folder)
                break
            # Remembered for as long as the training lasts, whichever attempt ends it.
            (self.folder / folder.name.replace("step-", _DAMAGED)).touch()
            shutil.rmtree(folder)
        self.damaged = sorted(
            int(path.name.removeprefix(_DAMAGED)) for path in self.folder.glob(f"{_DAMAGED}*")
        )
        for stale in self.folder.glob(".building-*"):
            shutil.rmtree(stale)
        return newest

    def load(self) -> tuple[int, dict[str, Any]]:
        """Take back the newest valid checkpoint, whatever ranks and ZeRO stage wrote it.

        Returns:
            Number of finished steps and the saved state; (0, {}) if there is no checkpoint.

        Raises:
            ResumeError: if it lacks a weight of this model.
        """
        chosen = [self._choose() if self.masters.rank == 0 else ""]
        dist.broadcast_object_list(chosen, src=0)
        if not chosen[0]:
            return 0, {}
        manifest = read_record(Path(chosen[0]) / MANIFEST)
        saved = _Pieces(Path(chosen[0]), manifest["files"])
        tensors = self.masters.tensors()
        self.masters.fill(tensors, saved.reader(_WEIGHT))
        if self.averages:
            self.masters.fill(self.averages, saved.reader(_AVERAGE))
        moments = saved.kinds - {_WEIGHT, _AVERAGE}
        for kind in moments:
            values = []
            for master in self.masters.all:
                has = master.weights and (kind, master.weights[0].name) in saved.found
                values.append(torch.zeros_like(master.tensor) if has else None)
                if has:
                    self.optimizer.state[master.tensor][kind] = values[-1]
            self.masters.fill(values, saved.reader(kind))
        for kind, scalar in manifest["scalars"].items():
            belongs = set(scalar["weights"])
            for master in self.masters.all:
                if master.weights and master.weights[0].name in belongs:
                    value = torch.tensor(scalar["value"], device=master.tensor.device)
                    self.optimizer.state[master.tensor][kind] = value
        self.masters.refresh()
        self.latest = manifest["step"]
        return manifest["step"], manifest["state"]


def _write_pieces(pieces: dict[str, Tensor], path: Path) -> tuple[int, str]:
    """Write flat float32 tensors as a file of safetensors, and forget them one by one; returns its size and XXH3.

    The library's own writer copies all of them first.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, piece in pieces.items():
        start, end = end, end + piece.nbytes
        header[name] = {"dtype": "F32", "shape": list(piece.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = xxhash.xxh3_128()
    with path.open("wb") as file:
        for part in (struct.pack("<Q", len(text)), text):
            file.write(part)
            digest.update(part)
        for name in list(pieces):
            data = pieces.pop(name).numpy().data
            file.write(data)
            digest.update(data)
        file.flush()
        os.fsync(file.fileno())
        return file.tell(), digest.hexdigest()


class _Pieces:
    """The files of a checkpoint, as one flattened weight after another."""

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        self.folder = folder
        self.found: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = {}
        for file in files:
            opened: Any = safe_open(folder / file, framework="pt")
            for key in opened.keys():  # noqa: SIM118 - it is no mapping
                kind, name, start = key.split(":")
                length = opened.get_slice(key).get_shape()[0]
                self.found.setdefault((kind, name), []).append((int(start), length, opened, key))

    @property
    def kinds(self) -> set[str]:
        """Weights, averages, and each kind of moment."""
        return {kind for kind, _ in self.found}

    def reader(self, kind: str) -> Callable[[str, int, int], Tensor]:
        """A function that gives elements start to stop of a flattened weight by its name."""

        def read(name: str, start: int, stop: int) -> Tensor:
            if (kind, name) not in self.found:
                raise ResumeError(
                    f"the checkpoint {self.folder} has no {kind} of {name}: delete {self.folder.parent} to train from the start"
                )
            parts = []
            for first, length, opened, key in sorted(self.found[kind, name], key=lambda piece: piece[0]):
                begin, end = max(start, first), min(stop, first + length)
                if begin < end:
                    parts.append(opened.get_slice(key)[begin - first : end - first])
            return torch.cat(parts)

        return read
