"""Run every benchmark, one after the other."""

import runpy
from pathlib import Path

for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
    print(f"\n$ python -m benchmarks.{path.stem}\n", flush=True)
    runpy.run_module(f"benchmarks.{path.stem}", run_name="__main__")
