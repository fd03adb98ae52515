"""`workers.embed`, and a file of how many images were begun: a line for each part, by whoever decodes it.

`BENCH_COUNT_FILE` names the file, here and in the environment of Ray's workers; see `bench/kills.py`.
"""

from __future__ import annotations

import json
import os
from typing import Any

import workers.embed
from workers.job import run_job

_decode_rows = workers.embed.decode_rows


def decode_rows(batch: dict[str, Any], run_uri: str) -> dict[str, Any]:
    """As in `workers.embed`; what is begun is written down, and taken back where the part was in the store already."""
    sizes = [json.loads(text)["size"] for text in batch["part"]]
    _write(sizes)
    answer = _decode_rows(batch, run_uri)
    _write([-size for size, text in zip(sizes, answer["part"], strict=True) if json.loads(str(text))[3]])
    return answer


def _write(numbers: list[int]) -> None:
    with open(os.environ["BENCH_COUNT_FILE"], "a", encoding="utf-8") as file:
        file.write("".join(f"{number}\n" for number in numbers))


if __name__ == "__main__":
    # By its importable name: a function of __main__ would travel with all that this file holds.
    from bench import counted_embed

    workers.embed.decode_rows = counted_embed.decode_rows
    run_job("embed", workers.embed.work)
