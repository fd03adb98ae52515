"""Writes what `tests/store/test_older_stores.py` opens: a small store with everything in it that a store may hold.

Once for each release, from a checkout of its tag:

    python -m tests.support.older_store tests/store/written/0.1.0.tar.xz

A trained model, an archive with a version for each of two deliveries and one without a forgotten image; a name, a note
and a decision. By the command line alone, so that this file serves any release. Beside the store lie the archive's
images and what its readers were told (`told.json`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from tests.support.small_archive import make_delivery, make_labelled

# The images' address is part of a run; this one says nothing of the machine on which it was made.
PLACE = Path("/var/tmp/damage-atlas-older-store")
ARCHIVE, MODEL = "bridge", "stripes"
FORGOTTEN = "2026-01/asset-1/dots-003.png"
LOOKED_FOR = "2026-01/asset-0/across-002.png"
SETTINGS = (
    "train.input_size=32", "train.pooling=average", "train.batch_size=12", "train.iterations=40",
    "embed.rows_per_part=16", "cluster.method=kmeans", "cluster.kmeans_clusters=3", "explain.nearest=3",
    "explain.picture_size=32", "report.thumbnail_size=16",
)  # fmt: skip


def atlas(store: Path, command: str, *arguments: str, archive: str = ARCHIVE) -> Any:
    """What a command says of an archive of the store, as JSON."""
    argv = [sys.executable, "-c", "from damage_atlas.cli import main; main()", command, *arguments]
    argv += ["--store", str(store), "--archive", archive, "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} {arguments}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def write(target: Path) -> None:
    """Make the archive, three versions of it, and pack them."""
    shutil.rmtree(PLACE, ignore_errors=True)
    images, store = PLACE / "images", PLACE / "store"
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    atlas(store, "run", "--images", str(make_labelled(PLACE / "labelled", each=12, side=48)), *settings, archive=MODEL)
    shutil.rmtree(PLACE / "labelled")
    bring = ("recluster", "--images", str(images), "--model", MODEL, *settings, "--set", "catalog.labels=none",
             "--set", "catalog.deliveries=folder")  # fmt: skip
    make_delivery(images, "2026-01", 0, each=12, side=48)
    atlas(store, *bring, "--run-id", "first")
    atlas(store, "name", "1", "one of three", "--by", "Ann")
    atlas(store, "note", "2", "ask the owner", "--severity", "4", "--by", "Ann")
    atlas(store, "decide", "asset-0", "visit", "--by", "Ann", "--note", "before winter")
    make_delivery(images, "2026-02", 12, each=4, side=48)
    atlas(store, *bring, "--run-id", "second")
    atlas(store, "forget", FORGOTTEN, "--reason", "a number plate")
    told = {
        "history": atlas(store, "history"),
        "cluster 1": atlas(store, "history", "--cluster", "1"),
        "decisions": atlas(store, "decisions"),
        "search": atlas(store, "search", str(images / LOOKED_FOR), "-k", "5"),
    }
    (PLACE / "told.json").write_text(json.dumps(told, indent=1))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, "w:xz") as tar:
        tar.add(PLACE, arcname=".", filter=_nobodys)
    shutil.rmtree(PLACE)
    print(f"{target}: {target.stat().st_size / 1024:.0f} KiB")


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


if __name__ == "__main__":
    write(Path(sys.argv[1]))
