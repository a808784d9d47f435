"""What a flow returns: the run that it made, and what came of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.runs.record import REPORT, Run
from tasks.engine.build import Outcome


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        verdict: of a retraining, how it ended, such as Promoted; of others Completed.
        reason: why, in one sentence; empty if there is nothing to say.
        run: None if a retraining found nothing new.
        outcomes: by name of the node.
    """

    verdict: str
    reason: str = ""
    run: Run | None = None
    outcomes: dict[str, Outcome] = field(default_factory=dict, repr=False)

    def metrics(self, name: str) -> dict[str, Any] | None:
        """Figures of a node of the graph; None if the graph has no such node."""
        return self.outcomes[name].stored.manifest.metrics if name in self.outcomes else None

    @property
    def name(self) -> str | None:
        """Name of the run."""
        return self.run.name if self.run else None

    @property
    def report(self) -> Path | None:
        """The report of the run."""
        return self.run.path / REPORT if self.run else None

    @property
    def model(self) -> Path | None:
        """Hugging Face folder of the model."""
        return self.outcomes["export_model"].stored.out if "export_model" in self.outcomes else None

    @property
    def training(self) -> Outcome | None:
        """The training of the run; None if it trained nothing."""
        name = self.run.node_with_role("train") if self.run else None
        return self.outcomes[name] if name else None

    @property
    def benchmarks(self) -> dict[str, Any]:
        """Scores by benchmark."""
        return (self.metrics("evaluate_model") or {}).get("benchmarks", {})

    @property
    def bits_per_byte(self) -> float | None:
        """Of the held-out text; None of a model that was tuned on conversations."""
        return (self.metrics("evaluate_held_out") or {}).get("bits_per_byte")

    def summary(self) -> dict[str, Any]:
        """The line of JSON that `--json` prints."""
        artifacts = {
            name: {
                "key": outcome.stored.manifest.key,
                "digest": outcome.stored.manifest.digest,
                "path": str(outcome.stored.out),
                "cached": outcome.cached,
                "shards": {"built": outcome.shards_built, "reused": outcome.shards_reused},
            }
            for name, outcome in self.outcomes.items()
        }
        results: dict[str, Any] = {}
        answers = self.metrics("compare_answers")
        if answers:
            results["answers"] = answers["groups"]
        elif self.bits_per_byte is not None:
            results["bits_per_byte"] = self.bits_per_byte
        training, resumed_from_step = self.training, None
        if training:
            figures = training.stored.manifest.metrics
            results |= {name: figures[name] for name in ("step_seconds", "tokens", "parameters")}
            resumed_from_step = None if training.cached else figures["resumed_from_step"]
        results["benchmarks"] = self.benchmarks
        return {
            "run": self.name,
            "artifacts": artifacts,
            "results": results,
            "resumed_from_step": resumed_from_step,
            "report": str(self.report),
        }
