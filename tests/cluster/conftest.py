"""A Slurm cluster and a Ray cluster on this computer, each of several nodes, for the session."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import slurm
from tests.end_to_end.conftest import line, prefect_server

__all__ = ["line", "prefect_server"]


@dataclass
class Nodes:
    """A cluster to build on.

    Attributes:
        settings: the section machine.cluster that names it.
        environment: what a driver needs in its environment to find it.
        cluster: what starts and ends nodes, of Ray.
    """

    settings: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)
    cluster: Any = None


@pytest.fixture(scope="session")
def slurm_nodes() -> Iterator[Nodes]:
    """Two nodes with one core each."""
    why_not = slurm.missing()
    if why_not:
        pytest.skip(f"no Slurm: {why_not} (apt-get install slurmctld slurmd slurm-client munge)")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scratchlm-slurm-")))
        try:
            found = stack.enter_context(slurm.slurm(folder))
        except slurm.NotHere as why:
            pytest.skip(f"no Slurm: {why}")
        settings = {"kind": "slurm", "partition": "main", "jobs": 4, "time": "0:30:00"}
        yield Nodes(settings, {"SLURM_CONF": found["SLURM_CONF"]})


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[Nodes]:
    """Three nodes: one that computes nothing, and two with one core each."""
    ray = pytest.importorskip("ray", reason="no Ray: pip install 'scratchlm[ray]'")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    memory = {"object_store_memory": 80_000_000, "include_dashboard": False}
    try:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **memory})
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    except Exception as why:  # whatever a computer does not let it do
        pytest.skip(f"no Ray: it does not come up: {type(why).__name__}: {str(why)[-300:]}")
    settings = {"kind": "ray", "address": cluster.address, "memory_per_job": "100MB"}
    yield Nodes(settings, {}, cluster)
    assert not ray.is_initialized()
    cluster.shutdown()


@pytest.fixture(params=["slurm", "ray"])
def nodes(request: pytest.FixtureRequest) -> Nodes:
    """Each of them."""
    return request.getfixturevalue(f"{request.param}_nodes")
