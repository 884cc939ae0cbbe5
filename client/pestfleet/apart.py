"""Programs that are started apart from the terminal: Ctrl-C there is for pestfleet alone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any


def run_apart() -> dict[str, Any]:
    """Keywords for `subprocess.Popen` and `run`."""
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        return {"creationflags": flags}
    return {"start_new_session": True}
