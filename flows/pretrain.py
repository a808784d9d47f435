"""pretrain: the whole graph, recipe in, benchmarked model out."""

from flows.recipe import Recipe
from tasks.clean import clean
from tasks.decontaminate import decontaminate
from tasks.deduplicate import DeduplicateConfig, deduplicate
from tasks.evaluate_model import evaluate_model
from tasks.export_model import export_model
from tasks.index_benchmarks import IndexBenchmarksConfig, index_benchmarks
from tasks.ingest import ingest
from tasks.minhash import minhash
from tasks.split import split
from tasks.stage import Node
from tasks.tokenize import tokenize
from tasks.train_model import TrainModelConfig, train_model
from tasks.train_tokenizer import train_tokenizer


def graph(recipe: Recipe) -> list[Node]:
    """The stages of a recipe, each after what it reads. Nothing runs."""
    benchmarks = recipe.evaluate_model
    documents = ingest(recipe.ingest)
    cleaned = clean(recipe.clean, documents=documents)
    signatures = minhash(recipe.minhash, documents=cleaned)
    duplicates = deduplicate(
        DeduplicateConfig(
            minhash=recipe.minhash, kept_ids=recipe.split.validation_ids, kept_source=recipe.split.validation_source
        ),
        signatures=signatures,
    )
    index = index_benchmarks(
        IndexBenchmarksConfig(tasks=benchmarks.tasks, data=benchmarks.data, **recipe.index_benchmarks.model_dump())
    )
    contaminated = decontaminate(recipe.decontaminate, documents=cleaned, index=index)
    selection = split(recipe.split, documents=cleaned, duplicates=duplicates, contaminated=contaminated)
    tokenizer = train_tokenizer(recipe.train_tokenizer, documents=cleaned, selection=selection)
    tokens = tokenize(recipe.tokenize, documents=cleaned, selection=selection, tokenizer=tokenizer)
    trained = train_model(TrainModelConfig(model=recipe.model, train=recipe.train_model), tokens=tokens, tokenizer=tokenizer)
    exported = export_model(recipe.export_model, model=trained, tokenizer=tokenizer)
    evaluated = evaluate_model(benchmarks, model=exported, documents=documents, selection=selection)
    return [
        documents, cleaned, signatures, duplicates, index, contaminated, selection,
        tokenizer, tokens, trained, exported, evaluated,
    ]  # fmt: skip
