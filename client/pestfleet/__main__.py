"""`python -m pestfleet`."""

from __future__ import annotations

from pestfleet.cli.main import main

if __name__ == "__main__":
    main()
