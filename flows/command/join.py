"""join: take part in a training that waits for this computer."""

from typing import Annotated

import typer

from flows.command.options import DEFAULT_STORE, StoreFolder, make_app
from flows.command.say import say
from tasks.engine import team

app = make_app()


@app.command()
def join(
    store: StoreFolder = DEFAULT_STORE,
    again: Annotated[
        bool, typer.Option("--again", help="When a training is over, wait for the next one.")
    ] = False,
) -> None:
    """Train with another computer: be a node of the next training in a shared store.

    Waits for one that has machine.nodes. Says what differs in code, libraries or store, and does not join then. Run it on every computer but the one with `run`.
    """
    say(f"waiting for a training in {store} with machine.nodes; Ctrl-C ends this")
    while True:
        status = team.join(store.absolute())
        say(f"the training is over here, with status {status}")
        if not again:
            raise typer.Exit(1 if status else 0)
