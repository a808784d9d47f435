"""A small dose of `python -m tests.faults`."""

import random
from pathlib import Path

import pytest

from tests.faults.chaos import Chaos, toy_subject


@pytest.mark.end_to_end
def test_twenty_faults_and_no_lie(tmp_path: Path):
    chaos = Chaos(toy_subject(tmp_path / "subject"), random.Random(20))
    assert len(list(chaos.run(20))) == 20
    assert len(chaos.counts) >= 4
