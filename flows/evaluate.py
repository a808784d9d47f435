"""evaluate: the benchmarks on a model that is there already, of a run or in a Hugging Face folder."""

from tasks.engine.stage import Node
from tasks.evaluation.evaluate_model import EvaluateModelConfig, evaluate_model


def graph(model: Node, config: EvaluateModelConfig) -> list[Node]:
    """One model and its benchmarks. Nothing runs."""
    return [model, evaluate_model(config, model=model)]
