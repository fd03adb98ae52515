"""Reads, hashes and decodes files, one part after the other. Failures are rows; what was found out is kept."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import pyarrow as pa

from damage_atlas.catalog.annotations import Annotations, VideoSideCar, parse_member
from damage_atlas.catalog.known import write_known
from damage_atlas.catalog.listing import ListedFile
from damage_atlas.catalog.tar import Member, read_members
from damage_atlas.contracts import FILES
from damage_atlas.decoding.facts import Sampling
from damage_atlas.decoding.isolated import choose_frames
from damage_atlas.images import ImageError, Limits, file_sha256, inspect, local_copy, read_file
from damage_atlas.store.objects import Store, sha256

FileRow = dict[str, Any]  # column of contracts.FILES -> value


@dataclass(frozen=True)
class CheckedPart:
    """A part that was checked: where it is kept, and how many of its pictures cannot be used."""

    key: str
    files: int  # that were listed
    rows: int
    bad: int


@dataclass(frozen=True)
class CheckFiles:
    """Checks one part of the listed files and keeps what it found; picklable, so that it can be done anywhere.

    Raises (when called):
        StoreError: the store did not answer; that is nobody's fault among the files.
    """

    images_root: str
    limits: Limits
    sampling: Sampling
    store_root: str
    folder: str  # in the store: where facts about files are kept

    def __call__(self, files: Sequence[ListedFile]) -> CheckedPart:
        """Check one part of the files."""
        images = Store(self.images_root)
        rows = [row for file in files for row in self._check(images, file)]
        key = write_known(Store(self.store_root), self.folder, pa.Table.from_pylist(rows, FILES))
        return CheckedPart(key, len(files), len(rows), sum(row.get("reason") is not None for row in rows))

    def _check(self, images: Store, listed: ListedFile) -> list[FileRow]:
        common: FileRow = {
            "listed": listed.file,
            "fingerprint": listed.fingerprint or "",
            "file": listed.file,
            "size_bytes": listed.size_bytes,
        }
        if listed.reason is not None:
            return [common | {"reason": listed.reason, "detail": listed.detail}]
        rows: list[FileRow] = []
        try:
            if listed.is_tar:
                for row in self._members(images, listed):
                    rows.append(common | row)
                if not rows:
                    raise ImageError("empty", "the tar file holds no pictures")
            elif listed.is_video:
                rows = [common | row for row in self._frames(images, listed)]
            else:
                self._refuse_too_long(listed.size_bytes or 0)
                rows = [common | self._inspected(read_file(images, listed.file))]
        except ImageError as error:
            rows.append(common | {"reason": error.reason, "detail": error.detail})
        return rows

    def _refuse_too_long(self, size_bytes: int) -> None:
        if size_bytes > self.limits.max_bytes:
            raise ImageError("bomb", f"{size_bytes:,} bytes, the limit is {self.limits.max_bytes:,}")

    def _inspected(self, data: bytes) -> FileRow:
        row: FileRow = {"size_bytes": len(data), "sha256": sha256(data)}
        try:
            return row | asdict(inspect(data, self.limits))
        except ImageError as error:
            return row | {"reason": error.reason, "detail": error.detail}

    def _members(self, images: Store, listed: ListedFile) -> Iterator[FileRow]:
        rows: list[tuple[str, FileRow]] = []
        notes: dict[str, Annotations] = {}
        damaged_notes: dict[str, str] = {}
        end: ImageError | None = None
        try:
            for member in read_members(images, listed, self.limits.max_bytes):
                if not member.is_note:
                    rows.append((member.stem, self._member(listed, member)))
                    continue
                try:
                    notes.setdefault(member.stem, {}).update(parse_member(member.name, member.data))
                except (ValueError, RecursionError) as error:
                    damaged_notes[member.stem] = f"{member.name} is not read: {error}"[:200]
        except ImageError as error:
            end = error
        for stem, row in rows:
            note = {"detail": damaged_notes[stem]} if stem in damaged_notes and row.get("detail") is None else {}
            yield row | notes.get(stem, {}) | note
        if end is not None:
            raise end

    def _member(self, listed: ListedFile, member: Member) -> FileRow:
        row: FileRow = {
            "file": f"{listed.file}/{member.name}",
            "container": listed.file,
            "byte_start": member.byte_start,
        }
        if member.error is not None:
            return row | {"size_bytes": None, "reason": member.error.reason, "detail": member.error.detail}
        return row | self._inspected(member.data)

    def _frames(self, images: Store, listed: ListedFile) -> Iterator[FileRow]:
        copy, path = local_copy(images, listed.file)
        try:
            digest = file_sha256(path)
            try:
                facts = choose_frames(path, self.sampling, self.limits)
            except ImageError as error:
                yield {"sha256": digest, "reason": error.reason, "detail": error.detail}
                return
            side_car, note = self._side_car(images, listed)
            if facts.damaged_packets:
                note = f"{facts.damaged_packets} damaged packets in the video; {note or ''}".rstrip("; ")
            for frame, time_s in facts.frames:
                yield {
                    "sha256": digest,
                    "frame": frame,
                    "frame_time_s": time_s,
                    "format": facts.format,
                    "width": facts.width,
                    "height": facts.height,
                    "captured_at": None if facts.captured_at is None else facts.captured_at + timedelta(seconds=time_s),
                    "detail": note,
                } | (side_car.at(time_s) if side_car else {})
            if facts.restarts_at is not None:
                detail = f"after {facts.restarts_at:.1f} s its time begins again, as in recordings that were joined; "
                detail += "what has a time that was there before is not read. Cut it there"
                yield {"sha256": digest, "reason": "corrupt", "detail": detail}
        finally:
            if copy is not None:
                copy.close()

    def _side_car(self, images: Store, listed: ListedFile) -> tuple[VideoSideCar | None, str | None]:
        name = f"{os.path.splitext(listed.file)[0]}.csv"
        try:
            return VideoSideCar(read_file(images, name).decode("utf-8")), None
        except ImageError as error:
            return None, None if error.reason == "vanished" else f"{name} is not read: {error}"[:200]
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            return None, f"{name} is not read: {error}"[:200]
