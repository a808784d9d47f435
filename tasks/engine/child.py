"""The process that builds one stage: `python -m tasks.engine.child SPEC`.

It calls the stage's function, for each shard that is missing if it is a map stage, and
publishes what it wrote. A killed build goes on from the shards that it had.
"""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from model.errors import StageFailed
from tasks.engine import process
from tasks.engine.call import Stopwatch, call, check_code
from tasks.engine.failures import describe
from tasks.engine.keys import canonical
from tasks.engine.manifest import OUT
from tasks.engine.progress import report_to
from tasks.engine.shards import build_map
from tasks.engine.sources import SourceDigests
from tasks.engine.spec import Spec
from tasks.engine.stage import Stage, load_stage
from tasks.engine.store import Store

PROGRESS = "progress.json"


def _check_source(stage: Stage, spec: Spec) -> None:
    """Refuse to publish what was read while the source changed: the key speaks of what was there before."""
    if stage.fingerprint:
        (config,) = stage.read_config(spec.config)
        if canonical(stage.fingerprint(config, SourceDigests(rehash=True))) != spec.ingredients["source"]:
            raise StageFailed(
                "its source changed while it was read: run the same command again", retryable=True
            )


def build_spec(spec: Spec, building: Path, spec_path: Path | None = None) -> int:
    """Build and publish what `spec` says, in this process; returns the number of shards built.

    Args:
        building: the folder to build in, with an empty out/.
        spec_path: file that holds `spec`, for workers; None without.

    Raises:
        StageFailed: if it fails, or if the folder is gone in the end: another computer has the lease since, and removed it.
    """
    try:
        return _build_in(spec, building, spec_path)
    except (OSError, StageFailed) as error:  # of a helper the latter
        if building.exists():
            raise
        raise StageFailed("the folder that it was built in was removed meanwhile", retryable=True) from error


def _build_in(spec: Spec, building: Path, spec_path: Path | None) -> int:
    stage, store = load_stage(spec.stage), Store(spec.store)
    check_code(stage, spec)
    if stage.mapped:
        return build_map(spec, building, spec_path, stage, store)
    watch = Stopwatch.start()
    for given in spec.inputs.values():
        given.check(store)
    inputs = {name: given.artifact() for name, given in spec.inputs.items()}
    metrics = call(stage, spec, store, spec.key, inputs, building / OUT)
    _check_source(stage, spec)
    manifest = watch.manifest(spec, stage, spec.key, metrics, digest="", ingredients=spec.ingredients)
    store.publish("artifacts", manifest, building)
    return 0


def main(spec_path: Path) -> int:
    """Build, and say how it ended."""
    process.adopt()
    process.exit_on_sigterm()
    spec = Spec.model_validate_json(spec_path.read_bytes())
    report_to(spec_path.parent / PROGRESS)
    result: dict[str, Any]
    try:
        result = {"built": build_spec(spec, spec_path.parent, spec_path)}
    except (Exception, KeyboardInterrupt) as error:
        traceback.print_exc()
        result = describe(error)
    process.report(json.dumps(result))
    return 1 if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
