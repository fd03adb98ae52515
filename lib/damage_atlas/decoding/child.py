"""The process in which decoders run: requests come by standard input, answers go by standard output.

Both are framed: two lengths, a JSON document, then bytes (a file, or pixels). Pixels go by memory that both map, whose
file descriptor is the first argument, where they fit into it. When a request takes too long the alarm ends the process,
wherever the decoder hangs; when the caller is gone the input ends, and so does the process.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import sys
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np

from damage_atlas.decoding.facts import Limits, Pixels, Sampling
from damage_atlas.decoding.faults import ImageError, is_of_the_machine
from damage_atlas.decoding.pictures import decode, inspect

_LENGTHS = struct.Struct(">IQ")


def write_message(stream: BinaryIO, document: dict[str, Any], data: bytes | memoryview = b"") -> None:
    """One framed message."""
    text = json.dumps(document, default=str).encode()
    stream.write(_LENGTHS.pack(len(text), len(data)) + text)
    stream.write(data)
    stream.flush()


def read_message(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """One framed message, or None where the stream has ended."""
    head = stream.read(_LENGTHS.size)
    if len(head) < _LENGTHS.size:
        return None
    text_length, data_length = _LENGTHS.unpack(head)
    text = stream.read(text_length)
    data = stream.read(data_length) if data_length else b""
    if len(text) < text_length or len(data) < data_length:
        return None
    document: dict[str, Any] = json.loads(text)
    return document, data


class _Decoders:
    """Answers requests; the last video stays open."""

    def __init__(self, shared: memoryview) -> None:
        self._shared = shared
        self._video: tuple[str, Any] | None = None

    def answer(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes | memoryview]:
        limits = Limits(**request["limits"])
        match request["op"]:
            case "inspect":
                return asdict(inspect(data, limits)), b""
            case "decode":
                return self._with_pixels(decode(data, limits, self._shared))
            case "choose_frames":
                from damage_atlas.decoding.video import choose_frames

                sampling = Sampling(**request["sampling"])
                return asdict(choose_frames(request["path"], sampling, limits, lambda: _watch(limits))), b""
            case "read_frame":
                frames = self._open(request["path"], limits)
                return self._with_pixels(frames.read(request["pts"], lambda: _watch(limits)))
        raise ValueError(request["op"])

    def _with_pixels(self, pixels: Pixels) -> tuple[dict[str, Any], bytes | memoryview]:
        height, width, _ = pixels.shape
        data = memoryview(pixels.reshape(-1).data)
        shared = data.nbytes <= self._shared.nbytes
        if shared and not np.shares_memory(pixels, self._shared):
            self._shared[: data.nbytes] = data
        return {"height": height, "width": width, "shared": shared}, b"" if shared else data

    def _open(self, path: str, limits: Limits) -> Any:
        from damage_atlas.decoding.video import VideoReader

        if self._video is None or self._video[0] != path:
            if self._video is not None:
                self._video[1].close()
            self._video = None
            self._video = (path, VideoReader(path, limits))
        return self._video[1]


def _watch(limits: Limits) -> None:
    signal.setitimer(signal.ITIMER_REAL, limits.decode_limit_s)


def main() -> None:
    """Answer requests until the caller is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a decoder prints must not get between the answers
    decoders = _Decoders(memoryview(mmap.mmap(int(sys.argv[1]), 0)) if len(sys.argv) > 1 else memoryview(b""))
    while (message := read_message(requests)) is not None:
        request, data = message
        _watch(Limits(**request["limits"]))
        payload: bytes | memoryview = b""
        try:
            document, payload = decoders.answer(request, data)
        except ImageError as error:
            document = {"reason": error.reason, "detail": error.detail}
        except Exception as error:  # FFmpeg's errors, too, are of many kinds
            what = f"{type(error).__name__}: {error}"[:200]
            document = {"machine": what} if is_of_the_machine(error) else {"reason": "corrupt", "detail": what}
        signal.setitimer(signal.ITIMER_REAL, 0)
        write_message(answers, document, payload)


if __name__ == "__main__":
    main()
