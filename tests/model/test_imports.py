"""Large libraries are imported without the collector, DeepSpeed without MLflow, and transformers without SciPy."""

import gc
import subprocess
import sys

import pytest

from model.imports import uncollected


def test_the_collector_rests_in_the_body_and_works_after_it():
    with uncollected():
        assert not gc.isenabled()
        before = gc.get_freeze_count()
        made = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > before + len(made)
    gc.unfreeze()


def test_the_collector_works_after_a_failure_too():
    with pytest.raises(ImportError), uncollected():
        raise ImportError
    assert gc.isenabled()
    gc.unfreeze()


def test_a_collector_that_is_off_stays_off():
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_deepspeed_does_not_import_mlflow_and_who_wants_it_still_can():
    pytest.importorskip("mlflow")
    program = """
import sys
from model.deepspeed_engine import _import_deepspeed
_import_deepspeed()
assert "deepspeed" in sys.modules
assert not any(name.startswith("mlflow") for name in sys.modules)
import mlflow
assert mlflow.set_tracking_uri
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_transformers_does_not_import_scipy_and_who_wants_it_still_can():
    program = """
import sys
from model.stock import import_transformers
transformers = import_transformers()
assert "transformers.modeling_utils" in sys.modules
assert not any(name.startswith("scipy") for name in sys.modules)
assert transformers.is_scipy_available()
import scipy.optimize
assert transformers.LlamaForCausalLM
"""
    subprocess.run([sys.executable, "-c", program], check=True)
