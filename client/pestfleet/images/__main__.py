"""Write what our images are built from, for who builds them by hand.

    python -m pestfleet.images FOLDER

writes FOLDER/worker, FOLDER/master and FOLDER/tunnel, and prints the commands that build them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pestfleet.images.base import name_image
from pestfleet.images.context import ROLES, make_context


def main() -> None:
    """Write the contexts and print the commands."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m pestfleet.images FOLDER")
    for role in ROLES:
        context = make_context(role)
        folder = Path(sys.argv[1], role)
        context.write(folder)
        arguments = "".join(
            f" --build-arg {name}={value}" for name, value in context.build_args.items()
        )
        print(f"docker build -t {name_image(role)}{arguments} {folder}")


if __name__ == "__main__":
    main()
