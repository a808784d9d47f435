"""The best weights so far, by the held-out figure: kept beside the checkpoints, and as safe as they are.

Which they are stands in the state of a checkpoint. A file that a checkpoint names is there until a checkpoint that
names another one is whole, so a resume finds what it knows of; what comes after it is measured again, to the same bits.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from model.checkpoint import ResumeError, checkpoint_states
from model.files import sha256_of_file
from model.masters import Masters
from model.weights import write_tensors


def _path(work: Path, steps: int) -> Path:
    return work / f"best-{steps:08d}.safetensors"


def keep_if_best(masters: Masters, work: Path, state: dict[str, Any], steps: int) -> None:
    """Keep the weights after `steps` steps if the held-out figure in `state` is the lowest so far; every rank calls it.

    Args:
        state: what a checkpoint knows; best_steps, best_bits_per_byte and best_sha256 are set.
    """
    measured, best = state["validation_bits_per_byte"], state["best_bits_per_byte"]
    if best is not None and measured >= best:
        return
    state |= {"best_steps": steps, "best_bits_per_byte": measured}
    weights = masters.gather()
    if masters.rank == 0:
        write_tensors(weights, _path(work, steps))
        state["best_sha256"] = sha256_of_file(_path(work, steps))


def forget_others(work: Path, state: dict[str, Any]) -> None:
    """Remove the weights that no checkpoint names any more; none while a checkpoint cannot be read."""
    try:
        named = {state["best_steps"], *(saved.get("best_steps") for saved in checkpoint_states(work))}
    except OSError:
        return
    kept = {_path(work, steps) for steps in named if steps}
    for path in work.glob("best-*.safetensors"):
        if path not in kept:
            path.unlink()


def load_best(work: Path, state: dict[str, Any]) -> dict[str, Tensor]:
    """The best weights, by name.

    Raises:
        ResumeError: if they are not what was kept.
    """
    path = _path(work, state["best_steps"])
    if not path.is_file() or sha256_of_file(path) != state["best_sha256"]:
        raise ResumeError(
            f"the best weights, of step {state['best_steps']}, are damaged or gone ({path}): remove the folder {work} to "
            "train again, or set keep to last"
        )
    return load_file(path)
