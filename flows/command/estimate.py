"""estimate: what a training needs, here or on hardware that is not here."""

import json
from typing import Annotated

import typer
from rich.console import Console

from flows.command.options import (
    DEFAULT_STORE,
    AsJson,
    Assignments,
    MachineFile,
    RecipeFile,
    StoreFolder,
    make_app,
    make_console,
)
from flows.command.say import say
from flows.recipe.read import load_recipe
from flows.recipe.recipe import Recipe
from flows.runs.estimate import Estimate, parse_hardware
from flows.runs.estimate import estimate as estimate_training
from flows.runs.execute import open_place
from flows.runs.speed import ASSUMED_SHARE_OF_PEAK
from flows.views.terminal import duration

app = make_app()


@app.command()
def estimate(
    recipe_file: RecipeFile,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="DEVICExN",
            help="Hardware that need not be here, such as h100x8; this machine, where some steps are tried, if left out.",
        ),
    ] = None,
    assignments: Assignments = None,
    machine: MachineFile = None,
    store: StoreFolder = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Say what the training of a recipe needs: parameters, FLOPs, memory of each rank and whether it fits, hours and money. Trains nothing.

    A price is told if machine.dollars_per_hour is given.
    """
    hardware = parse_hardware(on) if on else None
    more = ["machine.device=cuda"] if hardware else []
    recipe = load_recipe(recipe_file, [*(assignments or []), *more], machine)
    console = make_console(to_stderr=as_json)
    with console.status("") as status:
        found = estimate_training(recipe, open_place(recipe, store), hardware, status.update)
    if as_json:
        say(json.dumps(found.as_json()))
        return
    _print(found, recipe, console)


def _gigabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2f} GB"


def _print(found: Estimate, recipe: Recipe, console: Console) -> None:
    shape, plan, parameters = recipe.model, found.plan, found.parameters
    memory = plan.memory
    has = f" of {_gigabytes(found.memory_bytes)}" if found.memory_bytes else ""
    rows = {
        "model": f"{parameters.total / 1e6:,.1f} M parameters: embedding {parameters.embedding / 1e6:,.1f}, matrices "
        f"{parameters.matrices / 1e6:,.1f}, head {parameters.head / 1e6:,.1f} (n_layers {shape.n_layers}, d_model {shape.d_model}, n_heads "
        f"{shape.n_heads}, feed-forward {shape.feedforward_dim}, context {shape.context_length}, vocabulary "
        f"{recipe.train_tokenizer.vocabulary_size:,})",
        "training": f"{found.tokens:,} tokens, {found.tokens / parameters.total:.1f} a parameter, in {found.steps:,} steps; "
        f"{found.flops:.2e} FLOPs",
        "layout": f"{found.ranks} x {found.device}, {found.dtype}: {plan.micro_batch} windows in a pass, ZeRO stage {plan.zero_stage}, "
        f"recomputed: {plan.recompute}",
        "memory": f"{_gigabytes(memory.total)}{has} a rank: "
        + ", ".join(f"{name} {_gigabytes(value)}" for name, value in memory.parts.items() if value),
    }
    if found.peak_bytes:
        rows["tried"] = f"{_gigabytes(found.peak_bytes)} at its peak, Python and libraries among them"
    if not plan.fits:
        rows["fits"] = "no: take more devices (--on), a smaller model, or a shorter context"
    elif found.seconds is not None:
        how = (
            "steps that were tried"
            if found.is_measured
            else f"{ASSUMED_SHARE_OF_PEAK:.0%} of the peak, assumed"
        )
        rows["time"] = f"{duration(found.seconds)} of training ({how})"
    if found.fault:
        rows["time"] = f"not known: {found.fault}"
    if found.dollars is not None:
        rows["price"] = f"{found.dollars:,.2f} dollars"
    for name, text in rows.items():
        console.print(f"{name:<9}{text}", highlight=False)
