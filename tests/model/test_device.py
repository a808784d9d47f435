"""Which kernels compute attention; CUDA itself is not here, so torch's registry is asked with stand-ins for what is installed."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch.nn import attention

from model.device import take_flash_attention


class Handle:
    """What an implementation leaves with torch."""

    def remove(self) -> None:
        """Nothing to take away."""


def works() -> Handle:
    return Handle()


def is_broken() -> Any:
    raise ImportError("undefined symbol: made for another torch")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    def put(**implementations: Callable[[], Any]) -> None:
        for name, register in implementations.items():
            monkeypatch.setitem(attention._registry._FLASH_ATTENTION_IMPLS, name, register)

    yield put
    attention.restore_flash_attention_impl()


def test_nothing_is_installed_here():
    assert [take_flash_attention(capability) for capability in (8, 9, 10, 12)] == [None] * 4
    assert attention.current_flash_attention_impl() is None


@pytest.mark.parametrize(
    ("capability", "installed", "taken"),
    [
        (9, {"FA3": works, "FA4": works}, "FA3"),
        (9, {"FA4": works}, "FA4"),
        (10, {"FA3": works, "FA4": works}, "FA4"),
        (10, {"FA3": works}, None),
        (8, {"FA3": works, "FA4": works}, None),
    ],
)
def test_the_best_one_that_knows_the_device_is_taken(
    install: Callable[..., None], capability: int, installed: dict[str, Any], taken: str | None
):
    install(**installed)
    assert take_flash_attention(capability) == taken
    assert attention.current_flash_attention_impl() == taken


def test_one_that_does_not_load_is_told_and_ends_nothing(install: Callable[..., None]):
    install(FA3=is_broken, FA4=works)
    with pytest.warns(UserWarning, match=r"FA3 is installed and does not load .*another torch"):
        assert take_flash_attention(9) == "FA4"
