"""The toy stage that reads from outside the store."""

from pathlib import Path

from pydantic import Field

from model.base_config import Config
from tasks.engine.keys import LOCATION
from tasks.engine.stage import Metrics, stage


class NumbersConfig(Config):
    """Where the numbers are."""

    path: str = Field(description="Folder with one number a file.", json_schema_extra=LOCATION)


def fingerprint(config, digests):
    """The files by name, size and content."""
    root = Path(config.path)
    return digests.files(root, root.glob("*.txt"))


@stage(fingerprint=fingerprint)
def numbers(config: NumbersConfig, out: Path) -> Metrics:
    """One shard a file."""
    for position, path in enumerate(sorted(Path(config.path).glob("*.txt"))):
        folder = out / "shards" / f"{position:05d}"
        folder.mkdir(parents=True)
        (folder / "number").write_text(path.read_text().strip())
    return {}
