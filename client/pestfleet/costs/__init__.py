"""What a session costs: before it, while it runs, and after it.

`charges.py` says what is paid for, `prices.py` for how much, `plan.py` and `report.py` for how
long. Nothing here knows how a target is built.
"""
