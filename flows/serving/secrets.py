"""Secrets of a run, from Prefect's Secret blocks."""

import os

from prefect.blocks.system import Secret

from model.errors import InputError


async def load_secrets(secrets: dict[str, str] | None) -> None:
    """Put the values of Prefect Secret blocks into the environment, from where the stages take them."""
    for variable, block in (secrets or {}).items():
        try:
            loaded = await Secret.aload(block)
        except ValueError as error:
            raise InputError(
                f"secrets: there is no Secret block {block!r} for {variable}: create it in the Prefect UI under Blocks"
            ) from error
        os.environ[variable] = str(loaded.get())  # type: ignore[attr-defined]
