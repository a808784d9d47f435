"""Secrets of a run, from Prefect's Secret blocks."""

from prefect.blocks.system import Secret

from model.errors import InputError
from tasks.engine.secrets import is_secret_name, set_secret


async def load_secrets(secrets: dict[str, str] | None) -> None:
    """Put the values of Prefect Secret blocks into the environment, from where the stages take them."""
    for variable, block in (secrets or {}).items():
        if not is_secret_name(variable):
            raise InputError(
                f"secrets: {variable!r} is not the name of a secret, such as HF_TOKEN or AWS_SECRET_ACCESS_KEY: others of the "
                "environment decide what runs here, and are set where `scratchlm serve` or the worker is started"
            )
        try:
            loaded = await Secret.aload(block)
        except ValueError as error:
            raise InputError(
                f"secrets: there is no Secret block {block!r} for {variable}: create it in the Prefect UI under Blocks"
            ) from error
        set_secret(variable, str(loaded.get()))  # type: ignore[attr-defined]
