"""Reads, hashes and decodes files, one part after the other. Failures are rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from damage_atlas.catalog.listing import ListedFile
from damage_atlas.images import ImageError, Limits, PictureFacts, inspect, read_file
from damage_atlas.store.objects import Store, sha256


@dataclass(frozen=True)
class CheckedFile:
    """A listed file and what became of it: ``picture``, or ``reason`` and ``detail``."""

    file: str
    size_bytes: int | None
    sha256: str | None  # None where the bytes could not be read
    picture: PictureFacts | None = None
    reason: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class CheckFiles:
    """Checks one part of the listed files; picklable, so that a part can be checked anywhere.

    Raises (when called):
        StoreError: the store did not answer; that is nobody's fault among the files.
    """

    images_root: str
    limits: Limits

    @cached_property
    def _store(self) -> Store:
        return Store(self.images_root)

    def __call__(self, files: Sequence[ListedFile]) -> list[CheckedFile]:
        """Check one part of the files."""
        return [self._check(file) for file in files]

    def _check(self, listed: ListedFile) -> CheckedFile:
        if listed.reason is not None:
            return CheckedFile(listed.file, listed.size_bytes, None, None, listed.reason, listed.detail)
        try:
            data = read_file(self._store, listed.file)
        except ImageError as error:
            return CheckedFile(listed.file, listed.size_bytes, None, None, error.reason, error.detail)
        digest = sha256(data)
        try:
            return CheckedFile(listed.file, len(data), digest, inspect(data, self.limits))
        except ImageError as error:
            return CheckedFile(listed.file, len(data), digest, None, error.reason, error.detail)

    def __getstate__(self) -> dict[str, object]:
        # Without the opened store: its client holds locks and sockets.
        return {"images_root": self.images_root, "limits": self.limits}
