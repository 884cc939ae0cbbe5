"""Checks of a case before anything is launched: one module for each group of checks."""
