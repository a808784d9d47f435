"""What finds the text of a page: python benchmarks/extraction.py FILE.jsonl.gz, rows of JSON with HTML in a field text.

Prints a table in Markdown: MB of HTML for each CPU second, pages without text, characters that are found, and how many of
the words of one are among those of the other.
"""

import argparse
import gzip
import json
import statistics
import time
from pathlib import Path

from tasks.text.html import BadPage, text_of_page

_EXTRACTORS = ("resiliparse", "trafilatura")


def main() -> None:
    """Extract every page with each of them."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("file", type=Path)
    options.add_argument("--pages", type=int, default=200)
    given = options.parse_args()
    with gzip.open(given.file, "rt", encoding="utf-8") as file:
        pages = [json.loads(line)["text"].encode() for line in file]
    pages = pages[:: max(1, len(pages) // given.pages)][: given.pages]
    megabytes = sum(map(len, pages)) / 1e6
    found: dict[str, list[str]] = {}
    print(
        "| extractor | MB/CPU-s | pages without text | characters, median | of its words the other has, median |"
    )
    print("|---|---|---|---|---|")
    seconds = {}
    for name in _EXTRACTORS:
        started, found[name] = time.process_time(), []
        for page in pages:
            try:
                found[name].append(text_of_page(page, name))
            except BadPage:
                found[name].append("")
        seconds[name] = time.process_time() - started
    for name, other in (_EXTRACTORS, _EXTRACTORS[::-1]):
        shares = [
            len(words & set(theirs.split())) / len(words)
            for own, theirs in zip(found[name], found[other], strict=True)
            if (words := set(own.split()))
        ]
        empty = sum(not text.strip() for text in found[name])
        median = statistics.median(map(len, found[name]))
        print(
            f"| {name} | {megabytes / seconds[name]:.1f} | {empty} of {len(pages)} | {median:,.0f} | {statistics.median(shares):.1%} |"
        )


if __name__ == "__main__":
    main()
