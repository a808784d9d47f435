"""evaluate: the benchmarks on a model that is there already, of a run or in a Hugging Face folder."""

from pathlib import Path

from flows.runs import Run, find_model, new_run
from tasks.errors import InputError
from tasks.evaluate_model import EvaluateModelConfig, evaluate_model
from tasks.export_model import export_model
from tasks.snapshot_model import SnapshotModelConfig, snapshot_model
from tasks.stage import Node
from tasks.store.store import Store


def start(model: str, config: EvaluateModelConfig, store: Store) -> tuple[Run, list[Node]]:
    """A new run that evaluates a model, and its graph.

    Args:
        model: name of a run, or a folder.

    Raises:
        InputError: if it is neither.
    """
    if Path(model).expanduser().is_dir():
        source = snapshot_model(SnapshotModelConfig(path=model))
    else:
        try:
            made = find_model(store, model)
        except InputError as error:
            raise InputError(f"{error}; and there is no folder {model!r}") from None
        source = export_model.result(made.stored(store, "export_model").manifest.key, "model")
    record = {
        "flow": "evaluate",
        "model": model,
        "recipe": {"name": "evaluate", "evaluate_model": config.model_dump(mode="json")},
        "machine": {},
    }
    return new_run(store, "evaluate", record), [source, evaluate_model(config, model=source)]
