"""The repository as the architecture tests see it: its files, and its documents."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def files() -> tuple[str, ...]:
    """Every file of the repository, from its root, that .gitignore does not name."""
    patterns = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()]

    def walk(folder: Path) -> Iterator[Path]:
        for path in sorted(folder.iterdir()):
            # .git is a file in a linked work tree.
            if path.name == ".git" or any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns):
                continue
            if path.is_dir():
                yield from walk(path)
            else:
                yield path

    return tuple(path.relative_to(ROOT).as_posix() for path in walk(ROOT))


def read(file: str) -> str:
    """A text file of the repository."""
    return (ROOT / file).read_text(encoding="utf-8")


def documents() -> list[str]:
    """All Markdown files."""
    return [file for file in files() if file.endswith(".md")]


def code_of(document: str) -> list[str]:
    """What a document sets as code: lines of fenced blocks (continued ones joined), and spans between backticks."""
    text = read(document)
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return lines + [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def python_files(*folders: str) -> list[str]:
    """Python files below ``folders``."""
    return [file for file in files() if file.endswith(".py") and file.startswith(tuple(f"{f}/" for f in folders))]


def run_python(code: str, env: dict[str, str], timeout_s: float = 60) -> str:
    """Standard output of ``code`` in an interpreter of its own; fails the test with what it said on failure."""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout
