"""What a run will take, before it starts: from the text, from earlier runs, and as advice."""

import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.pretrain import graph
from flows.recipe.recipe import Recipe
from flows.runs.estimate import estimate
from flows.runs.execute import Place, open_place
from flows.runs.forecast import Forecast, forecast, foretell, round_down, with_seconds
from flows.runs.plan import plan
from flows.runs.record import start_run
from flows.runs.speed import foresee_training
from model.errors import InputError


def recipe_for(folder: Path, **sections: Any) -> Recipe:
    (folder / "text").mkdir(exist_ok=True)
    (folder / "text" / "a.txt").write_text("Some words and more of them.\n\n" * 4_000)
    return Recipe.model_validate(
        {
            "ingest": {"sources": [{"path": str(folder / "text")}]},
            "model": {"n_layers": 1, "d_model": 32, "n_heads": 1, "context_length": 64},
            "train_model": {"tokens": 100_000, "tokens_per_batch": 1024},
            "machine": {"device": "cpu"},
            **sections,
        }
    )


def foresee(
    folder: Path, tell: Callable[[str], None] | None = None, **sections: Any
) -> tuple[Recipe, Place, Forecast]:
    recipe = recipe_for(folder, **sections)
    place = open_place(recipe, folder / "store")
    nodes = graph(recipe)
    rows = plan(nodes, place.store, place.sources, {})
    return recipe, place, forecast(recipe, nodes, rows, place, tell)


def test_every_stage_of_a_first_run_has_seconds(tmp_path: Path):
    recipe, _place, foretold = foresee(tmp_path)
    assert set(foretold.seconds) == {node.name for node in graph(recipe)}
    assert all(seconds > 0 for seconds in foretold.seconds.values())
    assert max(foretold.seconds.values()) <= foretold.total_seconds <= sum(foretold.seconds.values()) + 6
    assert foretold.sizes.text_bytes == (tmp_path / "text" / "a.txt").stat().st_size
    assert foretold.memory_bytes > 1e8
    assert foretold.disk_bytes > 0


def test_more_text_more_tokens_and_a_larger_model_take_longer(tmp_path: Path):
    _, _, first = foresee(tmp_path)
    _, _, longer = foresee(tmp_path, train_model={"tokens": 400_000, "tokens_per_batch": 1024})
    wide = {"n_layers": 2, "d_model": 64, "n_heads": 1, "context_length": 64}
    _, _, wider = foresee(tmp_path, model=wide)
    assert longer.seconds["train_model"] > 1.5 * first.seconds["train_model"] - 10
    assert wider.seconds["train_model"] > first.seconds["train_model"]
    assert longer.epochs == pytest.approx(4 * first.epochs)


def test_many_epochs_and_many_hours_are_said_with_a_mend(tmp_path: Path):
    _, _, often = foresee(tmp_path, train_model={"tokens": 2_000_000, "tokens_per_batch": 1024})
    assert any("reads the text" in sentence and "learns it by heart" in sentence for sentence in often.advice)
    large = {"n_layers": 4, "d_model": 256, "n_heads": 4, "context_length": 256}
    _, _, long = foresee(
        tmp_path, model=large, train_model={"tokens": 200_000_000, "tokens_per_batch": 65_536}
    )
    (sentence,) = [sentence for sentence in long.advice if "hours here" in sentence]
    assert "train_model.tokens=" in sentence
    assert "takes 40 minutes" in sentence
    few = {"tokens": 20_480, "tokens_per_batch": 1024}
    assert foresee(tmp_path, train_model=few)[2].advice == ()


def test_what_took_longer_than_foretold_is_foretold_longer(tmp_path: Path):
    recipe, place, first = foresee(tmp_path)
    run = start_run(place.store, recipe)
    foretell(run, recipe, graph(recipe), place)
    assert run.record["forecast"]["host"] == socket.gethostname()
    assert run.record["forecast"]["seconds"]["clean"] == pytest.approx(first.seconds["clean"], abs=0.1)
    entry = {"cached": False, "shards": {"built": 1, "reused": 0}, "stage": "clean", "key": "0", "role": ""}
    run.record["stages"]["clean"] = {**entry, "seconds": 3 * first.seconds["clean"]}
    run.end("completed")
    _, _, second = foresee(tmp_path)
    assert second.seconds["clean"] == pytest.approx(3 * first.seconds["clean"], rel=0.1)
    assert second.seconds["minhash"] == first.seconds["minhash"]
    # A run that was foretold right leaves the forecast as it is.
    again = start_run(place.store, recipe)
    foretell(again, recipe, graph(recipe), place)
    again.record["stages"]["clean"] = {**entry, "seconds": 3 * first.seconds["clean"]}
    again.end("completed")
    assert foresee(tmp_path)[2].seconds["clean"] == pytest.approx(3 * first.seconds["clean"], rel=0.1)
    again.record["forecast"]["host"] = "elsewhere"
    again.save()
    # What another computer took says nothing of this one.
    run.record["forecast"]["host"] = "elsewhere"
    run.save()
    assert foresee(tmp_path)[2].seconds["clean"] == first.seconds["clean"]


def test_the_plan_has_the_seconds(tmp_path: Path):
    recipe, place, foretold = foresee(tmp_path)
    rows = with_seconds(plan(graph(recipe), place.store, place.sources, {}), foretold)
    assert {row.stage: row.seconds for row in rows} == foretold.seconds


@pytest.mark.parametrize(("value", "rounded"), [(1_234_567.8, 1_200_000), (99, 99), (0.5, 0), (105, 100)])
def test_round_down(value: float, rounded: int):
    assert round_down(value) == rounded


def test_a_dataset_whose_size_nobody_tells_makes_no_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tasks.text.pieces.hub_commit", lambda name: "0" * 40)
    hub = {"sources": [{"path": "dataset:someone/something"}]}
    _, _, foretold = foresee(tmp_path, ingest=hub)
    assert foretold.epochs == 0
    assert foretold.advice == ()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "data.arrow").write_bytes(b"x" * 100_000)
    _, _, local = foresee(tmp_path, ingest={"sources": [{"path": f"dataset:{tmp_path / 'saved'}"}]})
    assert local.sizes.text_bytes == 100_000


LONG = {"tokens": 2_000_000_000, "tokens_per_batch": 65_536}


def of_nodes(**machine: Any) -> dict[str, Any]:
    return {
        "train_model": LONG,
        "model": {"n_layers": 8, "d_model": 512, "n_heads": 8, "context_length": 512},
        "machine": {"device": "cuda", "cluster": {"kind": "slurm", "partition": "gpu"}, **machine},
    }


def test_a_training_is_foretold_on_the_ranks_that_it_will_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where six windows are shared by three of five devices."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 5)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=80e9))
    six = {"tokens": 6 * 4096, "tokens_per_batch": 6 * 256}
    shape = {"n_layers": 1, "d_model": 32, "n_heads": 1, "context_length": 256}
    open_ranks, three = (
        foresee(tmp_path, train_model=six, model=shape, machine={"device": "cuda", **ranks})[2]
        for ranks in ({}, {"ranks": 3})
    )
    assert open_ranks.step_seconds == three.step_seconds
    assert open_ranks.memory_bytes == three.memory_bytes


def test_a_training_elsewhere_is_not_tried_here_and_its_ranks_share_its_time(tmp_path: Path):
    tried: list[str] = []
    _, _, two = foresee(tmp_path, tried.append, **of_nodes(nodes=2, ranks=2))
    _, _, sixteen = foresee(tmp_path, tried.append, **of_nodes(nodes=2, ranks=16))
    assert not tried
    assert any("machine.nodes is 2" in sentence and "A100" in sentence for sentence in sixteen.advice)
    assert two.step_seconds == pytest.approx(8 * sixteen.step_seconds)


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_one_rank_cannot_try_ends_a_run_only_if_there_are_no_others(
    ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def too_small(*_: Any) -> None:
        raise InputError("training does not fit into memory")

    monkeypatch.setattr("flows.runs.speed.probe_training", too_small)
    sections = {"train_model": LONG, "machine": {"device": "cpu", "ranks": ranks}}
    if ranks == 1:
        with pytest.raises(InputError, match="does not fit"):
            foresee(tmp_path, lambda sentence: None, **sections)
    else:
        _, _, foretold = foresee(tmp_path, lambda sentence: None, **sections)
        assert any("one rank alone could not try the training" in sentence for sentence in foretold.advice)


def test_checkpoints_that_stay_need_room(tmp_path: Path):
    few = foresee(tmp_path, train_model=LONG)[2]
    kept = {"device": "cpu", "keep_checkpoint_every_hours": 0.01}
    assert foresee(tmp_path, train_model=LONG, machine=kept)[2].disk_bytes > few.disk_bytes


def test_ranks_share_what_is_evaluated(tmp_path: Path):
    one, four = (
        foresee(tmp_path, **of_nodes(nodes=1, ranks=ranks))[2].by_rates["evaluate_model"] for ranks in (1, 4)
    )
    start = 9.0
    assert one - start == pytest.approx(4 * (four - start))


def test_what_other_computers_do_is_not_estimated_by_trying_it_here(tmp_path: Path):
    recipe = recipe_for(tmp_path, **of_nodes(nodes=1, ranks=1))
    tried: list[str] = []
    estimated = estimate(recipe, open_place(recipe, tmp_path / "store"), None, tried.append)
    assert not tried
    assert estimated.seconds is None
    assert "machine.nodes is 1" in estimated.fault


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_was_held_while_steps_were_tried_is_told_where_it_is_what_a_rank_holds(
    ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    measured = {"start_seconds": 5.0, "step_seconds": 0.1, "python_seconds": 0.005, "peak_memory_bytes": 7e8}
    monkeypatch.setattr("flows.runs.speed.probe_training", lambda *_: measured)
    recipe = recipe_for(tmp_path, machine={"device": "cpu", "ranks": ranks})
    estimated = estimate(recipe, open_place(recipe, tmp_path / "store"), None, lambda sentence: None)
    assert estimated.seconds == pytest.approx(0.1 * estimated.steps / ranks)
    # One rank that does the work of two says nothing of what each of them holds.
    assert estimated.as_json()["peak_bytes"] == (7e8 if ranks == 1 else None)
    assert estimated.is_measured


def test_what_is_done_already_is_foreseen_without_its_device(tmp_path: Path):
    recipe = recipe_for(tmp_path, machine={"device": "cuda"})
    speed = foresee_training(recipe, 300, open_place(recipe, tmp_path / "store"), None, is_waiting=False)
    assert speed.step_seconds > 0


def test_what_was_tried_with_other_cores_memory_or_devices_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tried: list[int] = []

    def try_it(*_: object) -> dict[str, float]:
        tried.append(cores)
        return {
            "start_seconds": 5.0,
            "step_seconds": 8.0 / cores,
            "python_seconds": 0.005,
            "peak_memory_bytes": 7e8,
        }

    monkeypatch.setattr("flows.runs.speed.probe_training", try_it)
    monkeypatch.setattr("flows.runs.speed.available_cores", lambda: cores)
    machine = {"device": "cpu", "threads": 1, "memory_gigabytes": 10}

    def seconds(**more: object) -> float | None:
        recipe = recipe_for(tmp_path, machine={**machine, **more})
        return estimate(recipe, open_place(recipe, tmp_path / "store"), None, lambda sentence: None).seconds

    cores = 1
    alone = seconds()
    assert seconds(dollars_per_hour=2.0, keep_checkpoints=7) == alone
    cores = 4
    assert seconds() == pytest.approx(alone / 4)
    seconds(memory_gigabytes=5)
    assert tried == [1, 4, 4]
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    monkeypatch.setattr("flows.runs.speed._NVIDIA", tmp_path / "gpus")
    seconds()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    seconds()
    assert tried == [1, 4, 4, 4, 4]
