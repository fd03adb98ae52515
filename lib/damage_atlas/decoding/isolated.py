"""The caller's side of ``child.py``: the functions of ``pictures.py`` and ``video.py`` in a process of their own.

Processes are started when they are needed and kept for the next call: one for each thread that decodes at a time.
"""

from __future__ import annotations

import atexit
import fcntl
import math
import mmap
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from functools import lru_cache
from typing import Any, BinaryIO, Final, cast

import numpy as np

from damage_atlas.decoding.child import read_message, write_message
from damage_atlas.decoding.facts import DEFAULT_LIMITS, Limits, PictureFacts, Pixels, Sampling, VideoFacts
from damage_atlas.decoding.faults import ImageError
from damage_atlas.errors import MachineError

_PIPE_BYTES: Final = 1 << 20  # what Linux grants to anyone; most files then travel in one write
_SHARED_BYTES: Final = 8 << 20  # for pixels; those of larger pictures go through the pipe
_TRIES: Final = 2  # a process that was killed from outside, or a machine that stood still, says nothing about the file


def decode(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Pixels:
    """``pictures.decode`` in a process of its own.

    Raises:
        ImageError: as there; or the decoder crashed, or took longer than ``limits.decode_limit_s``.
        MachineError: the process was killed from outside, or cannot be started.
    """
    return _ask({"op": "decode"}, limits, data, _Child.pixels)


class Decoding:
    """``decode``, begun: take its ``result``, or ``cancel`` it. In between another process works on it."""

    def __init__(self, data: bytes, limits: Limits = DEFAULT_LIMITS) -> None:
        self._data, self._limits = data, limits
        self._child: _Child | None = _borrow()
        try:
            self._child.send({"op": "decode", "limits": _limits_document(limits)}, data)
        except _ChildDied:
            self._child = None

    def result(self) -> Pixels:
        """The pixels, once; errors as in ``decode``."""
        child, self._child = self._child, None
        try:
            if child is not None:
                answer = child.receive()
        except _ChildDied as died:
            if died.code == -signal.SIGALRM:  # that was the first try of two
                return _ask({"op": "decode"}, self._limits, self._data, _Child.pixels, tries=1)
            child = None
        if child is None:
            return decode(self._data, self._limits)
        try:
            return child.pixels(*_checked(*answer))
        finally:
            _give_back(child)

    def cancel(self) -> None:
        """Nobody wants the pixels any more."""
        child, self._child = self._child, None
        if child is not None:
            child.close()  # its answer would be taken for the next one's


def inspect(data: bytes, limits: Limits = DEFAULT_LIMITS) -> PictureFacts:
    """``pictures.inspect`` in a process of its own; errors as in ``decode``."""
    answer = _ask({"op": "inspect"}, limits, data)
    return PictureFacts(**answer | {"captured_at": _moment(answer["captured_at"])})


def choose_frames(path: str, sampling: Sampling, limits: Limits = DEFAULT_LIMITS) -> VideoFacts:
    """``video.choose_frames`` in a process of its own; the limit counts from frame to frame."""
    answer = _ask({"op": "choose_frames", "path": path, "sampling": asdict(sampling)}, limits)
    frames = tuple((pts, time_s) for pts, time_s in answer["frames"])
    return VideoFacts(**answer | {"captured_at": _moment(answer["captured_at"]), "frames": frames})


class VideoFrames:
    """Frames of one video, from a process that keeps it open; use as a context manager."""

    def __init__(self, path: str, limits: Limits = DEFAULT_LIMITS) -> None:
        self.path, self.limits = path, limits
        self._child: _Child | None = None

    def __enter__(self) -> VideoFrames:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            _give_back(self._child)
            self._child = None

    def read(self, pts: int) -> Pixels:
        """One frame; errors as in ``decode``."""
        request = {"op": "read_frame", "path": self.path, "pts": pts, "limits": asdict(self.limits)}
        for attempt in range(_TRIES):
            if self._child is None:
                self._child = _borrow()
            try:
                return self._child.pixels(*_checked(*self._child.ask(request, b"")))
            except _ChildDied as died:
                self._child = None
                if attempt == _TRIES - 1:
                    raise died.as_error(self.limits) from died
        raise AssertionError


class _ChildDied(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code

    def as_error(self, limits: Limits) -> ImageError | MachineError:
        if self.code in (-signal.SIGKILL, -signal.SIGTERM):
            return MachineError(
                "a decoder was killed, most likely because memory ran out. Give the machine more, then try again."
            )
        if self.code >= 0:
            return MachineError(
                f"a decoder could not be started (exit code {self.code}). Check the installation: "
                "python -m damage_atlas.decoding.child must start without a message."
            )
        if self.code == -signal.SIGALRM:
            return ImageError("hang", f"the decoder took longer than {limits.decode_limit_s:g} s")
        return ImageError("crash", f"the decoder ended by {signal.Signals(-self.code).name}")


class _Child:
    def __init__(self) -> None:
        # The caller's module path as it is now: Ray adds to it at run time.
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        shared = os.memfd_create("damage-atlas-pixels")
        try:
            os.ftruncate(shared, _SHARED_BYTES)
            self._shared = mmap.mmap(shared, 0)
            self.process = subprocess.Popen(
                # -P: what lies in the folder where someone started us is not ours to import.
                [sys.executable, "-P", "-m", "damage_atlas.decoding.child", str(shared)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(shared,),
                env=env,
            )
        finally:
            os.close(shared)
        self._in, self._out = cast(BinaryIO, self.process.stdin), cast(BinaryIO, self.process.stdout)
        for pipe in (self._in, self._out):
            with suppress(OSError):  # the user's pipes may be used up already: slower, not wrong
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        self.send(request, data)
        return self.receive()

    def send(self, request: dict[str, Any], data: bytes) -> None:
        try:
            write_message(self._in, request, data)
        except OSError:
            raise _ChildDied(self._ended()) from None
        except BaseException:
            self.close()  # interrupted between question and answer: the next question must not get this answer
            raise

    def receive(self) -> tuple[dict[str, Any], bytes]:
        try:
            answer = read_message(self._out)
        except OSError:
            answer = None
        except BaseException:
            self.close()
            raise
        if answer is None:
            raise _ChildDied(self._ended())
        return answer

    def pixels(self, answer: dict[str, Any], data: bytes) -> Pixels:
        """The pixels of an answer, before the next question is asked: H x W x 3, read-only."""
        shape = answer["height"], answer["width"], 3
        if not answer["shared"]:
            return np.frombuffer(data, np.uint8).reshape(shape)
        pixels = np.frombuffer(self._shared, np.uint8, math.prod(shape)).reshape(shape).copy()
        pixels.flags.writeable = False
        return pixels

    def _ended(self) -> int:
        with suppress(OSError):
            self._in.close()
        self._out.close()
        return self.process.wait()

    def close(self) -> None:
        self.process.kill()
        self._ended()


_idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()


def _borrow() -> _Child:
    with suppress(queue.Empty):
        while True:
            child = _idle.get_nowait()
            if child.process.poll() is None:
                return child
            child.close()  # killed while nobody asked it anything: that says nothing about the next file
    return _Child()


def _give_back(child: _Child) -> None:
    if child.process.poll() is None:
        _idle.put(child)


@contextmanager
def _borrowed() -> Iterator[_Child]:
    child = _borrow()
    try:
        yield child
    finally:
        _give_back(child)


@atexit.register
def _close_idle() -> None:
    with suppress(queue.Empty):
        while True:
            _idle.get_nowait().close()


def _forget_idle() -> None:
    # A forked process must not talk to its parent's decoders.
    global _idle
    _idle = queue.SimpleQueue()


os.register_at_fork(after_in_child=_forget_idle)


_limits_document = lru_cache(maxsize=8)(asdict)


def _document(_: _Child, answer: dict[str, Any], data: bytes) -> dict[str, Any]:
    return answer


def _ask(
    request: dict[str, Any],
    limits: Limits,
    data: bytes = b"",
    take: Callable[..., Any] = _document,
    tries: int = _TRIES,
) -> Any:
    """What ``take`` makes of the answer while the process is still ours."""
    request = {**request, "limits": _limits_document(limits)}
    for attempt in range(tries):
        try:
            with _borrowed() as child:
                return take(child, *_checked(*child.ask(request, data)))
        except _ChildDied as died:
            error = died.as_error(limits)
            if attempt == tries - 1:
                raise error from died
    raise AssertionError


def _checked(answer: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    if "machine" in answer:
        raise MachineError(
            f"a decoder ran out of memory, or the disk below the images failed ({answer['machine']}). Look at both, "
            "then try again."
        )
    if "reason" in answer:
        raise ImageError(answer["reason"], answer["detail"])
    return answer, data


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
