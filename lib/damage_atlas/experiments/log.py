"""Measurements as lines of a file: one that is there is not made again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from damage_atlas.errors import TrainingDivergedError
from damage_atlas.spec import TrainSpec

Row = dict[str, Any]


def deciding(train: TrainSpec, *others: str) -> Row:
    """The settings of a training that decide what it learns, and so whether it was measured already.

    Args:
        others: more settings that do not decide it here.
    """
    left_out = {"promote", "fewest_workers", *others, *(() if train.compile else ("compile",))}
    return train.model_dump(mode="json", exclude=left_out)


class MeasurementLog:
    """Rows of a JSON-lines file, each with ``key``: a digest of all that decides it.

    Args:
        file: is made when the first row is added.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        text = file.read_text() if file.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # the last line's writer was killed
            file.write_text(whole)
        self._rows = [json.loads(line) for line in whole.splitlines()]

    def measured(self, decides: Row, names: Row, measure: Callable[[], Row]) -> Row:
        """The row of these circumstances: from the file, or measured now and added to it.

        Args:
            decides: all that decides the result; anything that JSON can say.
            names: what the row is called by in tables.
            measure: gives the scores. A training that diverges has a row with the message, ``refused``, and
                none; it is not tried again either.
        """
        key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
        for row in self._rows:
            if row["key"] == key:
                return row
        try:
            scores = measure()
        except TrainingDivergedError as error:
            scores = {"refused": error.message}
        row = {"key": key, **names, **scores}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._rows.append(row)
        return row


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95% interval (Student's t); None for the width of fewer than two values."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    spread = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return mean, float(t.ppf(0.975, len(values) - 1)) * spread
