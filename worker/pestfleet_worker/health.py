"""How others see that a worker is connected with the broker: a young file, and a port that is open.

A container's health check looks at the file's age, so that it starts no Python. The port is for
platforms that ask hundreds of workers every few seconds: to connect to it starts no process at all.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from pathlib import Path

logger = logging.getLogger(__name__)

NAME = "alive"
LASTING = 30.0  # seconds for which a sign of the connection counts
GLANCE = 1.0  # seconds between two looks at whether it still does


class Health:
    """The file `alive` in a worker's scratch folder, and a port. No reason to fail, ever."""

    def __init__(self, scratch: Path, *, port: int = 0, lasting: float = LASTING) -> None:
        """`port`: 0 for none. It is open for `lasting` seconds after each `touch`."""
        self.path = scratch / NAME
        self._port = port
        self._lasting = lasting
        self._hidden = False
        self._until = 0.0
        self._changed = threading.Condition()
        if port:
            threading.Thread(target=self._keep_port, name="health", daemon=True).start()

    def hide(self, hidden: bool) -> None:
        """Have none: a worker that waits for its end does not count as ready."""
        if hidden != self._hidden:
            self._hidden = hidden
            if hidden:
                self.remove()

    def touch(self) -> None:
        """There is a connection now."""
        if self._hidden:
            return
        with self._changed:
            self._until = time.monotonic() + self._lasting
            self._changed.notify()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        except OSError as error:
            logger.warning("%s cannot be touched: %s", self.path, error)

    def remove(self) -> None:
        """The worker ends, or waits for its end."""
        self._until = 0.0
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s stays: %s", self.path, error)

    # -- the port ------------------------------------------------------------------------------

    def _keep_port(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._is_fresh)
            try:
                self._serve()
            except OSError as error:
                logger.warning("port %d cannot be opened: %s", self._port, error)
                time.sleep(GLANCE)

    def _is_fresh(self) -> bool:
        return time.monotonic() < self._until

    def _serve(self) -> None:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        with socket.create_server(("", self._port), family=family, dualstack_ipv6=both) as server:
            server.settimeout(GLANCE)
            while self._is_fresh():
                try:
                    server.accept()[0].close()  # that it was made is all that it says
                except TimeoutError:
                    continue
