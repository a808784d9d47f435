"""Children that stay: the servers and workers that a command needs while it runs."""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model.errors import StageFailed
from tasks.engine import process

_RESTARTS, _RESTART_WINDOW_SECONDS = 5, 300.0
_LOOK_SECONDS, _STOP_SECONDS = 0.5, 10.0


class Served:
    """A child that is started again when it dies.

    Args:
        name: what a person calls it.
        environment: added to that of a child.
        log: file that takes what it prints, after what is there.
    """

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self.name, self.arguments, self.environment, self.log_path = name, arguments, environment, log
        self.starts: list[float] = []
        self.child = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            child = subprocess.Popen(
                self.arguments,
                env=process.child_environment(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.starts.append(time.monotonic())
        return child

    def look_after(self) -> bool:
        """Start it again if it has ended; returns whether it had.

        Raises:
            StageFailed: if it ends again and again.
        """
        if self.child.poll() is None:
            return False
        now = time.monotonic()
        if len([start for start in self.starts if now - start < _RESTART_WINDOW_SECONDS]) > _RESTARTS:
            raise StageFailed(
                f"the {self.name} ended {_RESTARTS + 1} times", log=self.tail(), log_path=str(self.log_path)
            )
        self.child = self._start()
        return True

    @contextmanager
    def looked_after(self) -> Iterator[None]:
        """Start it again whenever it ends while the body runs; until it has ended too often."""
        is_over = threading.Event()

        def look() -> None:
            try:
                while not is_over.wait(_LOOK_SECONDS):
                    with suppress(OSError):  # a full disk, say: the next look may find room
                        self.look_after()
            except StageFailed:
                return  # whoever asks it says that it does not answer
            finally:
                # Here, since the kernel kills what a thread started when that thread ends, and it is to end by itself.
                process.stop(self.child, _STOP_SECONDS)

        thread = threading.Thread(target=look, name=f"looks after the {self.name}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def tail(self) -> str:
        """The end of what it printed."""
        return self.log_path.read_text(errors="replace")[-3000:]
