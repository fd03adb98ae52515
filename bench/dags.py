"""How long Airflow's DAG processor takes for our DAG files, apart from importing Airflow itself.

`python -m bench.dags` or `make bench-dags`. The processor parses each file in a process of its own, in which Airflow is
imported already, and again every few minutes. So each file is loaded here in a fresh interpreter, after all modules of
Airflow that it uses, and the sum is compared with what we allow ourselves.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 2.0  # for all files together
ROUNDS = 3

# Loads a DAG file twice over: first to learn which of Airflow's modules it uses, then, after those, timed.
CHILD = """
import importlib, json, sys, time
name, known = sys.argv[1], json.loads(sys.argv[2])
begin = time.perf_counter()
for module in known:
    try:
        importlib.import_module(module)
    except ImportError:
        pass  # one that only stands in sys.modules, under a name of its own
middle = time.perf_counter()
importlib.import_module(name)
seconds = [time.perf_counter() - middle, middle - begin]
print("BENCH", json.dumps([seconds, [m for m in sys.modules if m.split(".")[0] == "airflow"]]))
"""


def main() -> None:
    """Print seconds for each file, their sum, and its ratio to the limit."""
    files = sorted(file.stem for file in (ROOT / "dags").glob("*.py") if "DAG(" in file.read_text(encoding="utf-8"))
    total, airflow = 0.0, []
    for name in files:
        _, modules = _load(name, [])
        rounds = [_load(name, modules)[0] for _ in range(ROUNDS)]
        seconds = statistics.median(ours for ours, _ in rounds)
        airflow += [theirs for _, theirs in rounds]
        total += seconds
        print(f"{name + '.py':16} {seconds:6.3f} s")
    share = total / LIMIT_S
    print(f"{'all DAG files':16} {total:6.3f} s without Airflow's own import: {share:.2f} of the {LIMIT_S:g} s allowed")
    print(f"{'Airflow itself':16} {statistics.median(airflow):6.3f} s in each process")


def _load(name: str, modules: list[str]) -> tuple[tuple[float, float], list[str]]:
    """Seconds of the file and of Airflow's modules before it, and which modules those are."""
    with tempfile.TemporaryDirectory() as home:
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("lib", ".", "dags")),
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        }
        result = subprocess.run(
            [sys.executable, "-c", CHILD, name, json.dumps(modules)],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode:
        sys.exit(f"bench: dags/{name}.py cannot be loaded:\n{result.stderr}")
    line = next(line for line in result.stdout.splitlines() if line.startswith("BENCH "))
    seconds, found = json.loads(line.removeprefix("BENCH "))
    return (float(seconds[0]), float(seconds[1])), list(found)


if __name__ == "__main__":
    main()
