"""pretrain: the whole graph, recipe in, benchmarked model out."""

from collections.abc import Callable
from dataclasses import dataclass

from flows.recipe.recipe import Recipe
from tasks.benchmarks.index_benchmarks import IndexBenchmarksConfig, index_benchmarks
from tasks.engine.stage import Node
from tasks.evaluation.evaluate_held_out import evaluate_held_out
from tasks.evaluation.evaluate_model import evaluate_model
from tasks.text.clean import clean
from tasks.text.count_lines import CountLinesConfig, count_lines
from tasks.text.decontaminate import decontaminate
from tasks.text.deduplicate import DeduplicateConfig, deduplicate
from tasks.text.find_copies import find_copies
from tasks.text.find_duplicates import find_duplicates
from tasks.text.find_repeated_lines import FindRepeatedLinesConfig, find_repeated_lines
from tasks.text.ingest import ingest
from tasks.text.minhash import minhash
from tasks.text.split import split
from tasks.tokens.tokenize import tokenize
from tasks.tokens.train_tokenizer import train_tokenizer
from tasks.training.export_model import export_model
from tasks.training.settings import TrainModelConfig
from tasks.training.train_model import train_model


@dataclass(frozen=True)
class Text:
    """The part of the graph before training."""

    documents: Node
    lines: Node | None
    repeated: Node | None
    cleaned: Node
    signatures: Node
    copies: Node
    pairs: Node
    duplicates: Node
    index: Node
    contaminated: Node
    selection: Node
    tokenizer: Node
    tokens: Node


@dataclass(frozen=True)
class Model:
    """The part of the graph from training on."""

    trained: Node
    exported: Node
    held_out: Node
    evaluated: Node


def prepare_text(recipe: Recipe, tokenizer: Node | None = None, former: Node | None = None) -> Text:
    """From raw text to tokens.

    Args:
        tokenizer: one that is there; one is trained on this text if None.
        former: selection of an earlier run, whose texts keep their sides.
    """
    documents = ingest(recipe.ingest)
    lines, repeated, boilerplate = None, None, recipe.clean.repeated_lines
    if boilerplate:
        lines = count_lines(CountLinesConfig(min_characters=boilerplate.min_characters), documents=documents)
        how_often = FindRepeatedLinesConfig(min_documents=boilerplate.min_documents)
        repeated = find_repeated_lines(how_often, lines=lines)
    cleaned = clean(recipe.clean, documents=documents, **({"repeated": repeated} if repeated else {}))
    signatures = minhash(recipe.minhash, documents=cleaned)
    sides = {"kept_ids": recipe.split.validation_ids, "kept_source": recipe.split.validation_source}
    how = DeduplicateConfig(seed=recipe.split.seed, **sides, **dict(recipe.deduplicate))
    copies = find_copies(signatures=signatures)
    pairs = find_duplicates(recipe.minhash, signatures=signatures, copies=copies)
    more = {"former": former} if former else {}
    if recipe.deduplicate.prefer_field:
        more["documents"] = cleaned
    duplicates = deduplicate(how, signatures=signatures, copies=copies, pairs=pairs, **more)
    index = index_benchmarks(IndexBenchmarksConfig.of(recipe.index_benchmarks, recipe.evaluate_model))
    contaminated = decontaminate(documents=cleaned, index=index)
    selection = split(recipe.split, documents=cleaned, duplicates=duplicates, contaminated=contaminated)
    tokenizer = tokenizer or train_tokenizer(recipe.train_tokenizer, documents=cleaned, selection=selection)
    tokens = tokenize(documents=cleaned, selection=selection, tokenizer=tokenizer)
    return Text(
        documents,
        lines,
        repeated,
        cleaned,
        signatures,
        copies,
        pairs,
        duplicates,
        index,
        contaminated,
        selection,
        tokenizer,
        tokens,
    )


def train_from_scratch(recipe: Recipe, text: Text) -> Node:
    """Training from random weights."""
    config = TrainModelConfig(model=recipe.model, train=recipe.train_model, mixture=recipe.mixture)
    return train_model(config, tokens=text.tokens, tokenizer=text.tokenizer)


def make_model(
    recipe: Recipe, text: Text, train: Callable[[Recipe, Text], Node] = train_from_scratch
) -> Model:
    """From tokens to a benchmarked model."""
    trained = train(recipe, text)
    exported = export_model(recipe.export_model, model=trained, tokenizer=text.tokenizer)
    held_out = evaluate_held_out(model=exported, documents=text.documents, selection=text.selection)
    return Model(trained, exported, held_out, evaluate_model(recipe.evaluate_model, model=exported))


def nodes_of(part: Text | Model) -> list[Node]:
    """The nodes of a part of the graph, each after what it reads."""
    return [node for node in vars(part).values() if node]


def graph(recipe: Recipe) -> list[Node]:
    """The stages of a recipe, each after what it reads. Nothing runs."""
    text = prepare_text(recipe)
    return nodes_of(text) + nodes_of(make_model(recipe, text))
