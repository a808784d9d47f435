"""Which kernels compute attention; CUDA itself is not here, so torch's registry is asked with stand-ins for what is installed."""

import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import attention

from model import deepspeed_engine
from model.device import check_documents_apart, take_flash_attention
from model.errors import InputError


@pytest.mark.parametrize(("device", "is_ended"), [("cpu", True), ("cuda", False)])
def test_after_a_failure_the_group_of_nccl_stays(
    device: str, is_ended: bool, monkeypatch: pytest.MonkeyPatch
):
    """To end it a rank would wait for all others, which may wait for it."""
    ended = []
    comm = SimpleNamespace(destroy_process_group=lambda: ended.append(device))
    group = SimpleNamespace(init_distributed=lambda *_, **__: None, comm=comm)
    monkeypatch.setattr(deepspeed_engine, "_import_deepspeed", lambda: group)
    with deepspeed_engine.process_group(device):
        assert not ended
    assert ended.pop() == device
    with pytest.raises(ZeroDivisionError), deepspeed_engine.process_group(device):
        raise ZeroDivisionError
    assert bool(ended) == is_ended


def test_a_device_that_cannot_keep_documents_apart_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    check_documents_apart("cuda:0", "float32")
    check_documents_apart("cpu", "bfloat16")
    with pytest.raises(InputError, match=r"Tesla T4 has 7\.5: set dtype to float32"):
        check_documents_apart("cuda:0", "bfloat16")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    check_documents_apart("cuda:0", "bfloat16")


class Handle:
    """What an implementation leaves with torch."""

    def remove(self) -> None:
        """Nothing to take away."""


def works() -> Handle:
    return Handle()


def raises(error: Exception) -> Callable[[], Any]:
    def register() -> Any:
        raise error

    return register


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    def put(**implementations: Callable[[], Any]) -> None:
        for name, register in implementations.items():
            monkeypatch.setitem(attention._registry._FLASH_ATTENTION_IMPLS, name, register)

    yield put
    attention.restore_flash_attention_impl()


def test_nothing_is_installed_here():
    assert [take_flash_attention(capability, 64) for capability in (8, 9, 10, 12)] == [None] * 4
    assert attention.current_flash_attention_impl() is None


@pytest.mark.parametrize(
    ("capability", "head_dim", "installed", "taken"),
    [
        (9, 64, {"FA3": works, "FA4": works}, "FA3"),
        (9, 256, {"FA4": works}, "FA4"),
        (9, 100, {"FA3": works, "FA4": works}, None),
        (10, 128, {"FA3": works, "FA4": works}, "FA4"),
        (10, 192, {"FA4": works}, None),
        (10, 256, {"FA4": works}, "FA4"),
        (10, 64, {"FA3": works}, None),
        (8, 64, {"FA3": works, "FA4": works}, None),
    ],
)
def test_the_best_one_that_knows_the_device_and_its_heads_is_taken(
    install: Callable[..., None], capability: int, head_dim: int, installed: dict[str, Any], taken: str | None
):
    install(**installed)
    assert take_flash_attention(capability, head_dim) == taken
    assert attention.current_flash_attention_impl() == taken


@pytest.mark.parametrize(
    "error",
    [
        ImportError("undefined symbol: made for another torch"),
        ModuleNotFoundError("No module named 'cutlass'", name="cutlass"),
        AttributeError("module 'cutlass' has no attribute 'x'"),
        RuntimeError("does not expose FA3 kernels"),
    ],
)
def test_one_that_does_not_load_is_told_and_ends_nothing(install: Callable[..., None], error: Exception):
    install(FA3=raises(error), FA4=works)
    with pytest.warns(UserWarning, match="FA3 is installed and does not load") as told:
        assert take_flash_attention(9, 128) == "FA4"
    assert str(error) in str(told[0].message)


def test_what_is_not_installed_is_passed_over_in_silence(install: Callable[..., None]):
    install(FA3=raises(ModuleNotFoundError("No module named 'flash_attn'", name="flash_attn")), FA4=works)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert take_flash_attention(9, 128) == "FA4"
