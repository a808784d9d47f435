"""What the flows do when the server does not answer."""

import asyncio
from typing import Any

import httpx
import pytest


def test_a_task_waits_for_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch):
    from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError

    from flows import prefect_flows

    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(prefect_flows.asyncio, "sleep", sleep)

    def named(faults: list[Exception]) -> Any:
        async def run(job: str, **_: Any) -> str:
            if faults:
                raise ConcurrencySlotAcquisitionError("no slots") from faults.pop()
            return job

        return run

    away = httpx.ConnectError("connection refused")
    assert asyncio.run(prefect_flows._with_patience(named([away, away]), "done", [])) == "done"
    assert len(waited) == 2
    with pytest.raises(ConcurrencySlotAcquisitionError):
        asyncio.run(prefect_flows._with_patience(named([ValueError("no such limit")]), "done", []))
