"""Airflow notifiers that write what they are told into a file, so that a test can read it, and one that fails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.sdk import BaseNotifier


class WritesToFile(BaseNotifier):  # type: ignore[misc]
    """Appends ``text`` as a line to the file at ``path``, in the dag-processor as well as in the triggerer."""

    template_fields = ("text",)

    def __init__(self, path: str, text: str, context: Any = None) -> None:
        super().__init__(context)
        self.path = path
        self.text = text

    def notify(self, context: Any) -> None:
        """Where a DAG's callbacks run."""
        with Path(self.path).open("a", encoding="utf-8") as file:
            file.write(self.text + "\n")

    async def async_notify(self, context: Any) -> None:
        """Where deadlines are told."""
        self.notify(context)


class FileNotifier(BaseNotifier):
    template_fields: Sequence[str] = ("message",)

    def __init__(self, path: str, message: str) -> None:
        super().__init__()
        self.path, self.message = path, message

    def notify(self, context: Any) -> None:
        with Path(self.path).open("a", encoding="utf-8") as file:
            file.write(f"{self.message}\n---\n")


class BrokenNotifier(BaseNotifier):
    def notify(self, context: Any) -> None:
        raise ConnectionError("the mail server is away")
