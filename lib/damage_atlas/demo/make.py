"""`make_demo`: the whole archive, by as many processes as are worth starting."""

import csv
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from damage_atlas.demo.damage import MODES
from damage_atlas.demo.plan import SMALLEST, Plan, Shot
from damage_atlas.demo.planted import plant
from damage_atlas.demo.render import bank_of, write_close_up, write_large
from damage_atlas.errors import InputError

TRUTH_COLUMNS = (
    "file",
    "class",
    "mode",
    "severity",
    "background",
    "planted",
    "status",
    "reason",
    "delivery",
    "asset",
    "group",
    "boxes",
)
PHOTO_PX = (5472, 3648)  # a one-inch drone camera, 20 megapixels
PART_SHOTS = 64  # close-ups per task of a worker process: about half a second
SHOTS_WORTH_A_PROCESS = 500  # a further process needs some three seconds to start and to make its textures

Rows = list[dict[str, str]]
Task = tuple[str, int, int]  # "labelled", "archive" or "large", and the half-open range of indices


@dataclass(frozen=True)
class DemoSummary:
    """Where the demo archive lies and what is in it.

    Attributes:
        images: the folder that holds ``labelled/`` and ``archive/``.
        groups: side-car of the labelled images: which structure each shows (columns file, group).
        truth: what every file really is, for tests and scores; outside ``images``, no stage reads it.
        counts: labelled, archive (close-ups; new_kind among them), photos, duplicate, same_bytes, odd,
            quarantined, ignored.
    """

    images: Path
    labelled: Path
    archive: Path
    groups: Path
    truth: Path
    classes: tuple[str, ...]
    deliveries: tuple[str, ...]
    counts: Mapping[str, int]


def make_demo(
    out: Path,
    *,
    size: int = 1500,
    deliveries: int = 3,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
    photo_px: tuple[int, int] = PHOTO_PX,
) -> DemoSummary:
    """Writes a procedural inspection archive; the same settings give the same bytes with any ``workers``.

    Args:
        out: where ``images/`` and ``truth.csv`` go; must not hold an archive yet.
        size: close-ups of 256 x 256 pixels, labelled and archive together. Large photos (one per
            delivery, a few more in a very large archive), copies and broken files come on top.
        deliveries: additions to the archive; the third brings a kind of damage that was never seen before.
        seed: another seed is another archive.
        on_progress: called with (pictures written, pictures in all).
        workers: processes; default: one per core, fewer for a small archive. More than one are *spawned*,
            which runs the calling script's top level again: keep the call under ``if __name__ == "__main__":``.
        photo_px: width and height of the large photos; smaller ones save a test its time.

    Raises:
        InputError: a setting out of range, or ``out`` holds an archive or cannot be written.
    """
    if size < SMALLEST or deliveries < 1 or seed < 0 or min(photo_px) < 512 or (workers or 1) < 1:
        raise InputError(
            f"demo: size must be at least {SMALLEST} (is {size}), deliveries 1 ({deliveries}), "
            f"seed 0 ({seed}), workers 1 ({workers}) and photo_px 512 x 512 ({photo_px})."
        )
    images, truth = out / "images", out / "truth.csv"
    if images.exists() or truth.exists():
        raise InputError(f"demo: {out} holds an archive already. Remove it, or choose another --out folder.")
    try:
        images.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"demo: cannot write to {out} ({error.strerror}). Choose another --out folder.") from error

    plan = Plan(size, deliveries, seed)
    if workers is None:
        workers = max(1, min(_cores(), size // SHOTS_WORTH_A_PROCESS))
    counts: Counter[str] = Counter()
    groups = images / "labelled" / "groups.csv"
    unfinished = out / "truth.csv.part"
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, TRUTH_COLUMNS, lineterminator="\n")
        table.writeheader()
        done, total = 0, size + plan.n_photos
        for rows in _work(partial(_do, images, plan, photo_px), _tasks(plan), seed, workers):
            table.writerows(rows)
            counts.update(_kind(row) for row in rows)
            counts["new_kind"] += sum(row["planted"] == "new_kind" for row in rows)
            done += len(rows)
            if on_progress:
                on_progress(done, total)
        for row in plant(images, plan):
            table.writerow(row)
            counts[_kind(row)] += 1
    _write_groups(groups, (plan.labelled(i) for i in range(plan.n_labelled)))
    unfinished.rename(truth)  # last: truth.csv is there if and only if the archive is whole
    return DemoSummary(
        images=images,
        labelled=images / "labelled",
        archive=images / "archive",
        groups=groups,
        truth=truth,
        classes=tuple(MODES),
        deliveries=plan.deliveries,
        counts=dict(counts),
    )


def _kind(row: Mapping[str, str]) -> str:
    """The word of `DemoSummary.counts` that a row of the truth falls under."""
    planted = row["planted"].split(":")[0]
    if planted in ("", "new_kind"):
        return row["file"].split("/")[0]
    return {"photo": "photos", "corrupt": "quarantined", "side_car": "ignored"}.get(planted, planted)


def _tasks(plan: Plan) -> Iterator[Task]:
    """The work in parts, the slowest first so that no process is left with a large photo at the end."""
    yield from (("large", p, p + 1) for p in range(plan.n_photos))
    for kind, n in (("labelled", plan.n_labelled), ("archive", plan.n_archive)):
        yield from ((kind, start, min(start + PART_SHOTS, n)) for start in range(0, n, PART_SHOTS))


def _do(images: Path, plan: Plan, photo_px: tuple[int, int], task: Task) -> Rows:
    kind, start, stop = task
    if kind == "large":
        return [write_large(images, plan.large(p), photo_px) for p in range(start, stop)]
    shot_of = plan.labelled if kind == "labelled" else plan.archive
    return [write_close_up(images, shot_of(i)) for i in range(start, stop)]


def _work(do: Callable[[Task], Rows], tasks: Iterable[Task], seed: int, workers: int) -> Iterator[Rows]:
    """The results of all tasks in their order, from this process or from ``workers`` others."""
    if workers == 1:
        yield from map(do, tasks)
        return
    # Spawned, not forked: the caller may hold threads (Ray, torch), and a fork would copy their locks locked.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(seed,))
    try:
        yield from pool.map(do, tasks)
    except BrokenProcessPool as error:
        raise InputError(
            "demo: a worker process ended early. Call make_demo under `if __name__ == '__main__':`, or with workers=1."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(seed: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: one message, not one each
    bank_of(seed)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_groups(path: Path, shots: Iterable[Shot]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("file", "group"))
        table.writerows((shot.file.removeprefix("labelled/"), shot.group) for shot in shots)
