"""mixture: how much of the training each source of text has, and how often a source is read at most."""

from typing import Self

from pydantic import Field, model_validator

from model.base_config import Config
from model.errors import InputError
from model.objectives.mixed_text import SharesFrom


class MixturePhase(Config):
    """Other weights from some step on: the end of a training is often given to the best text."""

    from_fraction: float = Field(gt=0, lt=1, description="Share of the steps after which it begins.")
    weights: dict[str, float] = Field(
        min_length=1, description="Weight by source; a source that is not named is left out."
    )


class MixtureConfig(Config):
    """Weights of the sources; without them each document counts as often as any other."""

    weights: dict[str, float] = Field(
        {},
        description="Weight of each source, by name: its share of the training is its weight over the sum of all. A source that "
        "is not named is left out.",
    )
    phases: tuple[MixturePhase, ...] = Field(
        (), description="Other weights, from some share of the steps on."
    )
    max_epochs: float | None = Field(
        None,
        gt=0,
        description="How often a source is read at most; what its weight is worth beyond that goes to the others.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for where, weights in self.each():
            bad = next((name for name, weight in weights.items() if weight < 0), None)
            if bad is not None:
                raise ValueError(f"{where}.{bad} ({weights[bad]}) is negative")
            if weights and not sum(weights.values()):
                raise ValueError(f"{where}: all weights are 0, so nothing would be read")
        begins = [phase.from_fraction for phase in self.phases]
        if begins != sorted(set(begins)):
            raise ValueError("mixture.phases: from_fraction must rise from phase to phase")
        if (self.phases or self.max_epochs) and not self.weights:
            raise ValueError(
                "mixture.weights is empty: give each source a weight, or leave phases and max_epochs out"
            )
        return self

    def each(self) -> list[tuple[str, dict[str, float]]]:
        """Each set of weights, and where it stands in a recipe."""
        later = [(f"mixture.phases.{i}.weights", phase.weights) for i, phase in enumerate(self.phases)]
        return [("mixture.weights", self.weights), *later]


def _first_windows(config: MixtureConfig, n_steps: int, windows_per_step: int) -> list[int]:
    begins = [0, *(round(phase.from_fraction * n_steps) for phase in config.phases)]
    return [step * windows_per_step for step in begins]


def windows_by_source(
    config: MixtureConfig, sizes: dict[str, float], n_steps: int, windows_per_step: int
) -> list[SharesFrom]:
    """The shares of each phase, where no source is read more often than it may.

    Args:
        sizes: windows that each source has.

    Raises:
        InputError: if a source has no text, or all sources together have too little for the cap.
    """
    firsts = _first_windows(config, n_steps, windows_per_step)
    lasts = [*firsts[1:], n_steps * windows_per_step]
    left = {name: size * config.max_epochs for name, size in sizes.items()} if config.max_epochs else {}
    phases = []
    for (where, weights), first, last in zip(config.each(), firsts, lasts, strict=True):
        if first == last:  # a share of the training that is no whole step
            continue
        empty = next((name for name, weight in weights.items() if weight and sizes.get(name, 0) < 1), None)
        if empty is not None:
            raise InputError(
                f"{where}: the source {empty!r} has less text for training than one window: add text, or take its weight out"
            )
        wanted = _shared_out(weights, last - first, left) if left else dict(weights)
        if wanted is None:
            most = sum(left[name] for name, weight in weights.items() if weight)
            raise InputError(
                f"{where}: mixture.max_epochs ({config.max_epochs:g}) leaves {most:,.0f} windows of these sources, and of "
                f"train_model.tokens {last - first:,} are read there: lower train_model.tokens, raise mixture.max_epochs, or add text"
            )
        for name, count in wanted.items():
            if left:
                left[name] -= count
        phases.append(SharesFrom(first_window=first, shares=dict(sorted(wanted.items()))))
    return phases


def _shared_out(weights: dict[str, float], n: int, left: dict[str, float]) -> dict[str, float] | None:
    """n windows by weight, no source beyond what is left of it; None if there is too little."""
    given: dict[str, float] = {}
    open_weights = {name: weight for name, weight in weights.items() if weight}
    rest = float(n)
    while open_weights:
        total = sum(open_weights.values())
        full = {name for name, weight in open_weights.items() if rest * weight / total > left[name] + 1e-9}
        if not full:
            return {**given, **{name: rest * weight / total for name, weight in open_weights.items()}}
        for name in full:
            given[name] = left[name]
            rest -= left[name]
            del open_weights[name]
    return given if rest < 1 else None


def epochs_by_source(
    phases: list[SharesFrom], sizes: dict[str, float], n_windows: int
) -> dict[str, dict[str, float]]:
    """How many windows of each source are read, which share of all that is, and how often it is read."""
    read = dict.fromkeys(sizes, 0.0)
    lasts = [*(phase.first_window for phase in phases[1:]), n_windows]
    for phase, last in zip(phases, lasts, strict=True):
        total = sum(phase.shares.values())
        for name, share in phase.shares.items():
            read[name] = read.get(name, 0.0) + (last - phase.first_window) * share / total
    return {
        name: {
            "windows": round(count),
            "share": round(count / max(1, n_windows), 4),
            "epochs": round(count / max(1.0, sizes.get(name, 0.0)), 3),
        }
        for name, count in sorted(read.items())
    }
