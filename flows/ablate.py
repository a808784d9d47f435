"""ablate: what a step of cleaning, a source or the mixture is worth: the same training without it, some times each."""

import difflib
from dataclasses import replace

from flows.pretrain import Text, nodes_of, prepare_text, train_from_scratch
from flows.recipe.read import checked_values
from flows.recipe.recipe import Recipe
from flows.runs.worth import WITHOUT, export_name, held_out_name, train_name
from model.errors import InputError
from tasks.engine.stage import Node, topological
from tasks.evaluation.evaluate_held_out import evaluate_held_out
from tasks.text.clean import PLUG_INS, STEPS_OF_PROFILE
from tasks.text.sources import PROFILES_OF_AUTO
from tasks.training.export_model import export_model
from tasks.training.mixture import MixtureConfig

MIXTURE, _SOURCE, _STEP = "mixture", "source:", "clean."


def recipe_without(recipe: Recipe, what: str) -> Recipe:
    """The recipe without a step of cleaning, a source, or the mixture.

    Args:
        what: clean.STEP, clean.filters.NAME, source:NAME, or mixture.

    Raises:
        InputError: if the recipe does not have it, or cannot be without it.
    """
    values = recipe.model_dump(mode="json")
    values["machine"] = recipe.machine
    if what == MIXTURE:
        if not recipe.mixture.weights:
            raise InputError(
                "--without mixture: the recipe sets no mixture.weights, so there is nothing to leave out"
            )
        del values["mixture"]
    elif what.startswith(_SOURCE):
        _leave_out_source(values, recipe, what.removeprefix(_SOURCE))
    elif what.startswith(f"{_STEP}{PLUG_INS}."):
        name = what.removeprefix(f"{_STEP}{PLUG_INS}.")
        _known(name, list(recipe.clean.filters), what, "steps of clean.filters")
        del values["clean"][PLUG_INS][name]
    elif what.startswith(_STEP):
        step = what.removeprefix(_STEP)
        _known(step, _steps_taken(recipe), what, "steps that a source of this recipe takes")
        values["clean"][step] = None
    else:
        raise InputError(f"--without {what!r}: give clean.STEP, clean.filters.NAME, source:NAME, or mixture")
    return checked_values(Recipe, values, f"the recipe without {what}")


def _known(name: str, names: list[str], what: str, kind: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"{kind} are {', '.join(names) or 'none'}"
        raise InputError(f"--without {what!r}: {name!r} is none of the {kind}: {hint}")


def _steps_taken(recipe: Recipe) -> list[str]:
    """The steps of cleaning that are on, and that the profile of a source has."""
    profiles: set[str] = {source.profile for source in recipe.sources}
    if "auto" in profiles:
        profiles |= set(PROFILES_OF_AUTO)
    taken = {step for profile in profiles & STEPS_OF_PROFILE.keys() for step in STEPS_OF_PROFILE[profile]}
    return sorted(step for step in taken - {PLUG_INS} if getattr(recipe.clean, step) is not None)


def _leave_out_source(values: dict[str, object], recipe: Recipe, name: str) -> None:
    """Take a source, its weight and its held-out documents out of the values of a recipe."""
    names = [source.name for source in recipe.sources]
    _known(name, names, f"{_SOURCE}{name}", "sources of ingest")
    if len(names) == 1:
        raise InputError(f"--without source:{name}: it is the only source")
    if name == recipe.split.validation_source:
        raise InputError(f"--without source:{name}: it is held out (split.validation_source)")
    listed = recipe.split.validation_ids
    others = [identifier for identifier in listed if identifier.split("/")[0] != name]
    if listed and not others:
        raise InputError(f"--without source:{name}: all of split.validation_ids are of this source")
    sources = [source for source in recipe.sources if source.name != name]
    values["ingest"] = recipe.ingest.model_copy(update={"sources": tuple(sources)}).model_dump(mode="json")
    values["split"] = recipe.split.model_copy(update={"validation_ids": tuple(others)}).model_dump(
        mode="json"
    )
    values["mixture"] = _mixture_without(recipe.mixture, name).model_dump(mode="json")


def _mixture_without(mixture: MixtureConfig, name: str) -> MixtureConfig:
    """The same weights for the other sources; none where no weight is left."""

    def others(weights: dict[str, float]) -> dict[str, float]:
        return {source: weight for source, weight in weights.items() if source != name}

    weights = others(mixture.weights)
    if not any(weights.values()):
        return MixtureConfig()
    phases = [
        phase.model_copy(update={"weights": left})
        for phase in mixture.phases
        if any((left := others(phase.weights)).values())
    ]
    return mixture.model_copy(update={"weights": weights, "phases": tuple(phases)})


def graph(recipe: Recipe, what: str, seeds: int) -> list[Node]:
    """Both texts, `seeds` models from each at equal steps, and each model on what is held out of both. Nothing runs.

    The tokenizer is that of the text with it. What is held out there is held out of the other text too.

    Raises:
        InputError: if the recipe does not have what is left out, or there are too few models to know the noise.
    """
    if seeds < 2:
        raise InputError(f"seeds is {seeds}: take at least 2, since what lies between them is the noise")
    other = recipe_without(recipe, what)
    text = prepare_text(recipe)
    without = _text_without(other, text)
    nodes = nodes_of(text) + [node for node in nodes_of(without) if node not in nodes_of(text)]
    for seed in range(seeds):
        for one, own, is_without in ((recipe, text, False), (other, without, True)):
            nodes += _model(one, own, seed, is_without, text, without)
    return nodes


def _text_without(other: Recipe, text: Text) -> Text:
    """The graph of the other text; what is equal in both is one node."""
    made = prepare_text(other, tokenizer=text.tokenizer, former=text.selection)
    known: list[Node] = nodes_of(text)
    same: dict[Node, Node] = {}
    for node in topological(nodes_of(made)):
        inputs = {name: same[upstream] for name, upstream in node.inputs.items()}
        apart = replace(node, inputs=inputs, label=node.name + WITHOUT)
        same[node] = next((one for one in known if _is_equal(one, node, inputs)), apart)
    if same[made.documents] is text.documents and same[made.cleaned] is text.cleaned:
        return text  # nothing about the text differs, so that nobody need look for earlier sides
    return Text(**{name: node and same[node] for name, node in vars(made).items()})


def _is_equal(one: Node, node: Node, inputs: dict[str, Node]) -> bool:
    return one is node or (one.stage is node.stage and one.config == node.config and one.inputs == inputs)


def _model(recipe: Recipe, own: Text, seed: int, is_without: bool, text: Text, without: Text) -> list[Node]:
    """One model of a text, exported, and measured on what is held out of both."""
    seeded = recipe.train_model.model_copy(update={"seed": recipe.train_model.seed + seed})
    trained = train_from_scratch(recipe.model_copy(update={"train_model": seeded}), own)
    trained = trained.named(train_name(seed, is_without))
    exported = export_model(recipe.export_model, model=trained, tokenizer=text.tokenizer)
    exported = exported.named(export_name(seed, is_without))
    measured = [
        evaluate_held_out(model=exported, documents=of.documents, selection=of.selection).named(
            held_out_name(seed, is_without, of is not text)
        )
        for of in ([text] if without is text else [text, without])
    ]
    return [trained, exported, *measured]
