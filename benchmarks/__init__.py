"""Figures of speed and memory; `python -m benchmarks` prints them as JSON, one row a figure."""
