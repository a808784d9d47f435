"""The process that builds one stage: `python -m tasks.engine.child SPEC`.

It calls the stage's function, for each shard that is missing if it is a map stage, and
publishes what it wrote. A killed build goes on from the shards that it had.
"""

import errno
import json
import sys
import traceback
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from model.errors import InputError, StageFailed
from tasks.engine import process
from tasks.engine.call import Stopwatch, call, check_code
from tasks.engine.keys import canonical
from tasks.engine.manifest import OUT
from tasks.engine.progress import report_to
from tasks.engine.secrets import redact
from tasks.engine.shards import build_map
from tasks.engine.sources import SourceDigests
from tasks.engine.spec import Spec
from tasks.engine.stage import Stage, load_stage
from tasks.engine.store import Store

PROGRESS = "progress.json"
_SENTENCE_CHARACTERS = 4_000


def _check_source(stage: Stage, spec: Spec) -> None:
    """Refuse to publish what was read while the source changed: the key speaks of what was there before."""
    if stage.fingerprint:
        (config,) = stage.read_config(spec.config)
        if canonical(stage.fingerprint(config, SourceDigests(rehash=True))) != spec.ingredients["source"]:
            raise StageFailed(
                "its source changed while it was read: run the same command again", retryable=True
            )


def build_spec(spec: Spec, spec_path: Path | None = None) -> int:
    """Build and publish what `spec` says, in this process; returns the number of shards built.

    Args:
        spec_path: file that holds `spec`, for workers; None without.
    """
    stage, store = load_stage(spec.stage), Store(spec.store)
    check_code(stage, spec)
    if stage.mapped:
        return build_map(spec, spec_path, stage, store)
    watch, building = Stopwatch.start(), store.building(stage.name, spec.key)
    for given in spec.inputs.values():
        given.check(store)
    inputs = {name: given.artifact() for name, given in spec.inputs.items()}
    metrics = call(stage, spec, store, spec.key, inputs, building / OUT)
    _check_source(stage, spec)
    manifest = watch.manifest(spec, stage, spec.key, metrics, digest="", ingredients=spec.ingredients)
    store.publish("artifacts", manifest, building)
    return 0


def _is_retryable(error: BaseException) -> bool:
    if isinstance(error, StageFailed):
        return error.retryable
    if isinstance(error, KeyboardInterrupt):
        return True
    lasting = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
    if isinstance(error, lasting) or (
        isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    ):
        return False
    return isinstance(error, OSError | MemoryError | BrokenProcessPool)


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full ({error.filename or 'the store'}): free space and run the same command again"
        )
    if isinstance(error, BrokenProcessPool):
        return "a worker process was killed, perhaps for want of memory: lower machine.workers"
    return str(error) if isinstance(error, StageFailed | InputError) else f"{type(error).__name__}: {error}"


def main(spec_path: Path) -> int:
    """Build, and say how it ended."""
    process.adopt()
    process.exit_on_sigterm()
    spec = Spec.model_validate_json(spec_path.read_bytes())
    report_to(spec_path.parent / PROGRESS)
    result: dict[str, Any]
    try:
        result = {"built": build_spec(spec, spec_path)}
    except (Exception, KeyboardInterrupt) as error:
        traceback.print_exc()
        kind = "input" if isinstance(error, InputError) else "stage"
        sentence = redact(_sentence(error))[:_SENTENCE_CHARACTERS]
        result = {"error": sentence, "kind": kind, "retryable": _is_retryable(error)}
    process.report(json.dumps(result))
    return 1 if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
