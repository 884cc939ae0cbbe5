"""Fakes for tests of programs that talk to engines; they need no engine and no fleet.

`panther_master` stands in for a PEST++ master, `panther_agent` for one of its agents,
`run_service` for a fleet, `engine_pair` for BEOPEST and PEST_HP.
"""
