"""SDNET2018 as it is handed out: D, P and W (deck, pavement, wall), each with cracked (C…) and sound (U…) tiles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from damage_atlas.datasets.manifest import LeftOut, Row
from damage_atlas.errors import InputError

_SURFACES = {"D": "deck", "P": "pavement", "W": "wall"}
_OF_THE_PAPER = ("D", "P")
_STATES = {"C": "crack", "U": "non_crack"}
_ENDINGS = (".jpg", ".jpeg", ".png")


def read(source: Path, paper: bool, left_out: LeftOut) -> Iterator[Row]:
    """A row for each tile; the photo that it was cut from, as its name says (``7001-115.jpg``), is its group.

    Raises:
        InputError: the folders are not there.
    """
    root = next((folder for folder in (source, source / "SDNET2018") if (folder / "D").is_dir()), None)
    if root is None:
        raise InputError(f"{source} has no folder D (decks, with CD and UD in it). Is it where SDNET2018 was unpacked?")
    for letter, surface in _SURFACES.items():
        for mark, state in _STATES.items():
            folder = root / letter / f"{mark}{letter}"
            if not folder.is_dir():
                raise InputError(f"{folder} is not there. Unpack the whole of SDNET2018.")
            for file in sorted(folder.iterdir()):
                if file.suffix.lower() not in _ENDINGS:
                    left_out["no pictures"] += 1
                elif paper and letter not in _OF_THE_PAPER:
                    left_out["of walls, which the paper leaves out"] += 1
                else:
                    photo = file.stem.partition("-")[0]
                    name = file.relative_to(root).as_posix()
                    place = file.relative_to(source).as_posix()
                    yield Row(place, f"{surface}_{state}", f"{letter}-{photo}", name=name)
