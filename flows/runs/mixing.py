"""How often each source of a recipe would be read, and with which share of the training, before anything starts."""

from dataclasses import dataclass
from typing import Any

from flows.recipe.recipe import Recipe
from flows.recipe.suggest import bytes_per_token
from flows.runs.forecast import MANY_EPOCHS, text_bytes_of
from flows.runs.plan import CACHED, Planned
from model.errors import InputError
from tasks.text.listing import list_source
from tasks.text.sources import IngestConfig
from tasks.training.mixture import epochs_by_source, windows_by_source


@dataclass(frozen=True)
class SourceShare:
    """What a source gives to the training.

    Attributes:
        tokens: of its training text; counted, or estimated from the size of its files.
        share: of the windows of the training.
        epochs: how often it is read.
    """

    name: str
    bytes: float
    tokens: float
    share: float
    epochs: float


def _tokens_by_source(recipe: Recipe, known: dict[str, dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Bytes and training tokens of each source."""
    counted = known.get("tokenize", {}).get("train", {}).get("tokens_by_source", {})
    read = known.get("ingest", {}).get("sources", {})
    per_token = known.get("train_tokenizer", {}).get("bytes_per_token") or bytes_per_token(
        recipe.train_tokenizer.vocabulary_size
    )
    found = {}
    for source in recipe.sources:
        if source.name == recipe.split.validation_source:
            continue
        alone = recipe.model_copy(update={"ingest": IngestConfig(sources=(source,))})
        n_bytes = read.get(source.name, {}).get("bytes") or text_bytes_of(alone, [list_source(source)])
        held_out = recipe.split.validation_fraction or 0.05
        found[source.name] = (n_bytes, counted.get(source.name) or n_bytes * (1 - held_out) / per_token)
    return found


def mix_sources(recipe: Recipe, rows: list[Planned]) -> list[SourceShare]:
    """What each source gives to the training that a recipe asks for.

    Args:
        rows: the plan, with the figures of what is in the store.

    Raises:
        InputError: if the weights cannot be kept with this text.
    """
    sizes = _tokens_by_source(recipe, {row.stage: row.metrics for row in rows if row.state == CACHED})
    windows = {name: tokens / recipe.model.context_length for name, (_, tokens) in sizes.items()}
    per_step = recipe.train_model.tokens_per_batch // recipe.model.context_length
    n_windows = recipe.train_model.n_steps * per_step
    if recipe.mixture.weights:
        phases = windows_by_source(recipe.mixture, windows, recipe.train_model.n_steps, per_step)
        read = epochs_by_source(phases, windows, n_windows)
    else:
        total = max(1.0, sum(windows.values()))
        read = {name: {"share": own / total, "epochs": n_windows / total} for name, own in windows.items()}
    return [
        SourceShare(name, n_bytes, tokens, read[name]["share"], read[name]["epochs"])
        for name, (n_bytes, tokens) in sizes.items()
    ]


def warnings_of(shares: list[SourceShare]) -> list[str]:
    """Sources that are read very often."""
    return [
        f"the source {one.name} would be read {one.epochs:.1f} times, and a model learns by heart what it reads more than "
        f"{MANY_EPOCHS:g} times: lower its weight, or set mixture.max_epochs"
        for one in shares
        if one.epochs > MANY_EPOCHS
    ]


def told(recipe: Recipe, rows: list[Planned]) -> tuple[list[SourceShare], list[str]]:
    """What `plan` shows of the sources, and what it warns of; nothing of a single source without weights."""
    if len(recipe.sources) < 2 and not recipe.mixture.weights:
        return [], []
    try:
        shares = mix_sources(recipe, rows)
    except InputError as error:
        return [], [str(error)]
    return shares, warnings_of(shares) if recipe.mixture.weights else []
