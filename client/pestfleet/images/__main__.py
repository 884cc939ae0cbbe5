"""Write what our images are built from, for who builds them by hand.

    python -m pestfleet.images FOLDER

writes FOLDER/worker, FOLDER/master and FOLDER/tunnel, and prints the commands that build them, by
the settings in the table [image].
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from pestfleet.config import read_settings
from pestfleet.images.base import name_image
from pestfleet.images.context import ROLES, make_context
from pestfleet_worker.errors import PestfleetError


def main() -> None:
    """Write the contexts and print the commands."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m pestfleet.images FOLDER")
    try:
        image = read_settings().image
        for role in ROLES:
            context = make_context(role, base=image.base, index=image.index, ca=image.ca)
            folder = Path(sys.argv[1], role)
            context.write(folder)
            words = ["docker", "build", "-t", name_image(role, registry=image.registry)]
            for name, value in context.build_args.items():
                words += ["--build-arg", f"{name}={value}"]
            if image.network:
                words += ["--network", image.network]
            print(shlex.join([*words, str(folder)]))
    except PestfleetError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
