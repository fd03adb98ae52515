"""What must not straddle a split: a side-car's groups, else asset or photo; equal bytes stay together."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from damage_atlas.errors import InputError

_GROUP_COLUMNS = ("group", "source_photo")


@dataclass(frozen=True)
class SideCar:
    """Groups that a CSV file gives to files.

    Attributes:
        groups: name as written -> group.
    """

    where: str
    groups: dict[str, str]

    def match(self, files: Sequence[str]) -> tuple[dict[str, str], list[str]]:
        """Groups of ``files`` by relative path, else by unique file name; and the names left over.

        Raises:
            InputError: not one name is among the files, so this is another folder's list.
        """
        names = Counter(_name(file) for file in files)
        matched: dict[str, str] = {}
        used: set[str] = set()
        for file in files:
            key = file if file in self.groups else _name(file)
            if key in self.groups and (key == file or names[key] == 1):
                matched[file] = self.groups[key]
                used.add(key)
        if files and not matched:
            raise InputError(
                f"{self.where}: none of its {len(self.groups)} names is in the image folder. Names are paths "
                f"relative to that folder ({files[0]!r}) or unique file names ({_name(files[0])!r})."
            )
        return matched, sorted(set(self.groups) - used)


def parse_side_car(text: str, where: str) -> SideCar:
    """Read a CSV with the columns ``file`` and ``group`` (or ``source_photo``); other columns are ignored.

    A file without a group is left out.

    Raises:
        InputError: no such columns, a row that is short, or a file in two groups.
    """
    rows = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    groups: dict[str, str] = {}
    try:
        header = [name.strip() for name in next(rows, [])]
        column = next((name for name in _GROUP_COLUMNS if name in header), None)
        if "file" not in header or column is None:
            raise InputError(
                f"{where}: the first line names the columns {', '.join(header) or '(none)'}; wanted are "
                "`file` and `group`, separated by commas."
            )
        at_file, at_group = header.index("file"), header.index(column)
        for row in rows:
            if not row:
                continue
            if len(row) <= max(at_file, at_group):
                raise InputError(f"{where}, line {rows.line_num}: {len(row)} columns instead of {len(header)}.")
            file, group = row[at_file].removeprefix("./"), row[at_group].strip()
            if group and groups.setdefault(file, group) != group:
                raise InputError(f"{where}, line {rows.line_num}: {file!r} is in two groups. Keep one of them.")
    except csv.Error as error:
        raise InputError(f"{where}, line {rows.line_num}: not a CSV file ({error}).") from error
    return SideCar(where, groups)


def join_groups(groups: Sequence[str], digests: Sequence[str | None]) -> tuple[list[str], int]:
    """Join groups that share an image, byte for byte, directly or through others.

    Returns:
        the group of each row (of several joined, the first by name), and how many went into others.
    """
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    holder: dict[str, str] = {}
    for group, digest in zip(groups, digests, strict=True):
        if digest is not None:
            first, second = sorted((root(group), root(holder.setdefault(digest, group))))
            parent[second] = first
    return [root(group) for group in groups], sum(root(group) != group for group in parent)


def _name(file: str) -> str:
    return file.rpartition("/")[2]
