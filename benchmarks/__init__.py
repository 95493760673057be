"""Benchmarks: each module is a command that prints one table, whose rows are measured side by side in one run.

`python -m benchmarks` runs all of them, and `python -m benchmarks.trainer_overhead` runs one. They need
`pip install -e '.[bench]'` and CIFAR-10 (`cifarnets download`, or CIFARNETS_DATA).
"""
