"""Training a classifier of fastText from examples of good and of bad text, and saying how well it tells them apart."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import InputError, StageFailed
from tasks.text.classifiers import LABEL, file_digest, one_line, probabilities
from tasks.text.documents import text_digest

GOOD, BAD = "good", "bad"
_FEWEST = 20
"""Examples of each kind, those that are held out apart, without which precision and recall say nothing."""
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class AtThreshold:
    """What a classifier does to held-out examples when `min_probability` is `threshold`.

    Attributes:
        precision: share of what it keeps that is good; None if it keeps nothing.
        recall: share of the good that it keeps.
        dropped: share of the bad that it drops.
    """

    threshold: float
    precision: float | None
    recall: float
    dropped: float


@dataclass(frozen=True)
class Classifier:
    """A trained classifier, and what it is worth.

    Attributes:
        trained, held_out: number of examples by label.
        in_both: texts that were given as good and as bad, and left out.
    """

    path: Path
    digest: str
    trained: dict[str, int]
    held_out: dict[str, int]
    in_both: int
    at: tuple[AtThreshold, ...]


def train_classifier(good: Iterable[str], bad: Iterable[str], out: Path, held_out: float = 0.2) -> Classifier:
    """Write a classifier to `out`. The same examples give the same bytes.

    Words and pairs of words are its features. A text that occurs several times is one example.

    Args:
        held_out: share of the examples, by a hash of their text, on which it is measured and not trained.

    Raises:
        InputError: if there are too few examples of a kind.
    """
    texts = {GOOD: _by_digest(good), BAD: _by_digest(bad)}
    in_both = texts[GOOD].keys() & texts[BAD].keys()
    trained: dict[str, list[str]] = {}
    measured: dict[str, list[str]] = {}
    for label, found in texts.items():
        sides: tuple[list[str], list[str]] = ([], [])
        for digest in sorted(found.keys() - in_both):
            sides[digest < held_out * 2**64].append(found[digest])
        trained[label], measured[label] = sides
        if min(map(len, sides)) < _FEWEST:
            raise InputError(
                f"{len(found)} different {label} texts are {len(sides[0])} to train on and {len(sides[1])} held out, and {_FEWEST} of "
                "each are needed: give more examples"
            )
    lines = sorted((text_digest(text), label, text) for label in trained for text in trained[label])
    with tempfile.TemporaryDirectory() as folder:
        examples = Path(folder) / "examples.txt"
        examples.write_text("".join(f"{LABEL}{label} {text}\n" for _, label, text in lines), "utf-8")
        building = out.with_name(f".{out.name}")
        _train_apart(examples, building)
        building.replace(out)
    written = file_digest(out)
    scores = {label: probabilities(str(out), written, GOOD, of) for label, of in measured.items()}
    n_trained, n_measured = ({label: len(of) for label, of in side.items()} for side in (trained, measured))
    at = tuple(_at(threshold, scores) for threshold in THRESHOLDS)
    return Classifier(out, written, n_trained, n_measured, len(in_both), at)


_CHILD = """
import sys
from fasttext.FastText import train_supervised
how = {"lr": 0.5, "epoch": 10, "wordNgrams": 2, "dim": 16, "bucket": 200_000, "minCount": 1, "thread": 1, "verbose": 0}
train_supervised(input=sys.argv[1], **how).save_model(sys.argv[2])
"""


def _train_apart(examples: Path, out: Path) -> None:
    """Train in a process of its own, in one thread, so that the same examples give the same bytes.

    With one thread fastText draws a tenth of its first weights and leaves the others as it finds them in memory: fresh from
    the kernel, as the variable has it, they are zero.

    Raises:
        StageFailed: if it did not come to an end.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", _CHILD, str(examples), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise StageFailed(f"the classifier was not trained: {done.stderr.strip()[-500:] or done.returncode}")


def _by_digest(texts: Iterable[str]) -> dict[int, str]:
    lines = (one_line(text) for text in texts)
    return {text_digest(line): line for line in lines if line}


def _at(threshold: float, scores: dict[str, Any]) -> AtThreshold:
    kept = {label: sum(score >= threshold for score in of) for label, of in scores.items()}
    together = kept[GOOD] + kept[BAD]
    return AtThreshold(
        threshold,
        kept[GOOD] / together if together else None,
        kept[GOOD] / len(scores[GOOD]),
        1 - kept[BAD] / len(scores[BAD]),
    )
