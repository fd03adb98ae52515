"""What is installed, by package metadata alone."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from damage_atlas.doctor.findings import Finding

DISTRIBUTION = "damage-atlas"
# What shows that an extra is meant to be there, and the extra that brings it.
_MARKS = {"lib": ("torch", "cpu"), "ray": ("ray", "ray"), "airflow": ("apache-airflow", "airflow")}


def check_install() -> Iterator[Finding]:
    """Python, and what the installed extras ask for, by package metadata."""
    try:
        ours = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        yield Finding("install", "bad", "damage-atlas is not installed, only its code is here.", "Run `make setup`.")
        return
    python = ".".join(map(str, sys.version_info[:3]))
    wanted = SpecifierSet(ours.metadata["Requires-Python"])
    if python in wanted:
        yield Finding("python", "ok", f"Python {python}")
    else:
        yield Finding("python", "bad", f"Python {python}; damage-atlas needs {wanted}.", "Install it in such a Python.")
    extras = [""] + [extra for extra, (mark, _) in _MARKS.items() if version_of(mark)]
    for extra in extras:
        wrong = [
            f"{need.name} {found or 'is missing'} ({need.specifier or 'any version'} is needed)"
            for need in _needs_of(ours, extra)
            if (found := version_of(need.name)) is None or not need.specifier.contains(found, prereleases=True)
        ]
        title = f"what {DISTRIBUTION}{f'[{extra}]' if extra else ''} needs"
        if wrong:
            # From the checkout: no package index has it, so pip would take somebody else's of that name.
            what = f".[{_MARKS[extra][1]}]" if extra else "."
            yield Finding("install", "bad", f"{title}: {', '.join(wrong)}.", f"In the checkout: pip install '{what}'")
        else:
            yield Finding("install", "ok", f"{title} is there ({DISTRIBUTION} {ours.version})")
    faiss = [name for name in ("faiss-cpu", "faiss-gpu") if version_of(name)]
    if len(faiss) == 2:
        yield Finding(
            "install",
            "bad",
            "faiss-cpu and faiss-gpu are both installed; whichever was installed last has overwritten the other.",
            "pip uninstall faiss-cpu faiss-gpu, then in the checkout: pip install '.[cpu]', or '.[gpu]'.",
        )
    elif "lib" in extras and not faiss:
        yield Finding("install", "bad", "FAISS is missing.", "In the checkout: pip install '.[cpu]', or '.[gpu]'.")
    if version_of("apache-airflow"):
        if bridge := version_of("airflow-ray-jobs"):
            yield Finding("install", "ok", f"the bridge airflow-ray-jobs {bridge} is there")
        else:
            yield Finding(
                "install",
                "bad",
                "Airflow is here without its bridge to Ray.",
                "In the checkout: pip install lib/airflow_ray_jobs",
            )


def check_gpu() -> Iterator[Finding]:
    """Whether a GPU of this machine would be used; by its driver and by which builds are installed."""
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    torch = version_of("torch")
    if not driver:
        yield Finding("gpu", "skipped", "no NVIDIA driver here; this machine computes on its processors")
    elif torch is None:
        yield Finding("gpu", "skipped", "there is a GPU, and no torch to use it; Ray's nodes may have both")
    elif "+cpu" in torch or version_of("faiss-gpu") is None:
        builds = f"torch {torch}, " + ("faiss-gpu" if version_of("faiss-gpu") else "no faiss-gpu")
        yield Finding(
            "gpu",
            "bad",
            f"there is a GPU, and what is installed does not use it ({builds}).",
            "pip uninstall faiss-cpu torch; in the checkout: pip install '.[gpu]', from an index with CUDA builds.",
        )
    else:
        yield Finding("gpu", "ok", f"there is a GPU, and torch {torch} and faiss-gpu for it")


def needed(extra: str, distribution: str) -> SpecifierSet:
    """The versions of a distribution that our extra asks for; all where it is not installed or does not ask."""
    try:
        ours = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return SpecifierSet()
    asked = (need.specifier for need in _needs_of(ours, extra) if need.name == distribution)
    return next(asked, SpecifierSet())


def fits(version: str, wanted: SpecifierSet) -> bool:
    """Whether a version, as somebody else says it, is among those wanted."""
    try:
        return wanted.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def version_of(distribution: str) -> str | None:
    """The installed version; None where it is not installed."""
    try:
        return str(Version(importlib.metadata.version(distribution)))
    except importlib.metadata.PackageNotFoundError:
        return None


def _needs_of(ours: importlib.metadata.Distribution, extra: str) -> list[Requirement]:
    """What an extra (or, for "", the base) asks for on this machine, without what it takes from another extra."""
    needs = []
    for line in ours.requires or []:
        need = Requirement(line)
        in_base = need.marker is None or need.marker.evaluate({"extra": ""})
        wanted = (
            in_base if not extra else not in_base and need.marker is not None and need.marker.evaluate({"extra": extra})
        )
        if wanted and need.name != DISTRIBUTION:
            needs.append(need)
    return needs
