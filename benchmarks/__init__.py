"""Benchmarks: each module is a command that prints one table, measured side by side in one run.

`python -m benchmarks` runs them all; `python -m benchmarks.trainer_overhead` one. They need `pip install -e '.[bench]'`
and CIFAR-10 (`cifarnets download`, or CIFARNETS_DATA).
"""
