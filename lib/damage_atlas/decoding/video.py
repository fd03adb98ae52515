"""Videos: which frames are looked at, and their pixels, by FFmpeg through PyAV."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import av
import numpy as np

from damage_atlas.decoding.facts import Limits, Pixels, Sampling, VideoFacts
from damage_atlas.decoding.faults import ImageError, is_of_the_machine
from damage_atlas.decoding.pictures import check_size

av.logging.set_level(av.logging.PANIC)  # what it has to say arrives as an error

# A video must not make FFmpeg open anything else: a playlist that is called .mp4 could name any file or address.
_OPTIONS: Final = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,ogg,flv,dv,mxf",
}
_HOPELESS = 1000  # damaged packets in a row
_THUMBNAIL = 32  # pixels a side: what scene changes are looked for in
_ROUNDING_S = 1e-6  # times are told to the microsecond
_RESTART_S = 1.0  # a jump back as far is not a matter of the order of frames
_OVERLAP_S = 5.0  # of joined segments, or of a clock that was set: nothing of it is missed
_MOST_FRAMES = 200_000  # two days, a frame each second
_STEP_BACK_S = 2.0
_SEEK_BEYOND_S = 20.0  # decoding on is cheaper than seeking to a key frame that lies before us


def choose_frames(path: str, sampling: Sampling, limits: Limits, on_frame: Callable[[], None]) -> VideoFacts:
    """Decode the whole video and choose frames; damaged stretches are passed over and counted.

    Args:
        on_frame: called after each decoded frame, so that a watch-dog sees progress.

    Raises:
        ImageError: not a video that is read, or no frame of it can be decoded.
    """
    with _faults_told(path), _opened(path) as container:
        stream = _stream(container, limits)
        chosen: list[tuple[int, float]] = []
        seen: np.ndarray | None = None
        due, latest, passed_over_s = 0.0, -math.inf, 0.0
        restarts_at, is_again = None, False
        size = (0, 0)
        decoder = _Decoder(container, stream)
        for frame in decoder:
            on_frame()
            time_s = _time_at(frame.pts, stream)
            size = size if chosen else _upright_size(frame)
            if time_s < latest - _RESTART_S and not is_again:
                restarts_at, is_again = restarts_at or latest, True
                passed_over_s += latest - time_s
            if is_again and time_s <= latest:
                continue
            is_again, latest = False, max(latest, time_s)
            if time_s < due - _ROUNDING_S:
                continue
            if sampling.scene_change is not None:
                small = frame.to_ndarray(width=_THUMBNAIL, height=_THUMBNAIL, format="gray").astype(np.float32) / 255
                if seen is not None and np.abs(small - seen).mean() < sampling.scene_change:
                    continue
                seen = small
                due = time_s + sampling.every_s
            else:
                due = (math.floor(time_s / sampling.every_s + 1e-6) + 1) * sampling.every_s
            chosen.append((int(frame.pts), time_s))
            if len(chosen) > _MOST_FRAMES:
                raise ImageError("bomb", f"more than {_MOST_FRAMES:,} frames would be looked at; raise video_every_s")
        if not chosen:
            raise ImageError("corrupt", f"no frame can be decoded ({decoder.damaged} damaged packets)")
        kind = f"{stream.codec_context.name}".upper()
        is_lost = is_again or passed_over_s > _OVERLAP_S
        return VideoFacts(
            *size, kind, _created(container), tuple(chosen), decoder.damaged, restarts_at if is_lost else None
        )


class VideoReader:
    """Frames of one video, best asked for in the order of time: the decoder goes on from where it is."""

    def __init__(self, path: str, limits: Limits) -> None:
        self._path, self._limits = path, limits
        self._begin()

    def _begin(self) -> None:
        self._container = _opened(self._path)
        self._stream = _stream(self._container, self._limits)
        self._frames = iter(_Decoder(self._container, self._stream))
        self._at: int | None = None

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def read(self, pts: int, on_frame: Callable[[], None]) -> Pixels:
        """The frame with this presentation timestamp, H x W x 3.

        Raises:
            ImageError: there is no such frame any more.
        """
        with _faults_told(self._path):
            return self._read(pts, on_frame)

    def _read(self, pts: int, on_frame: Callable[[], None]) -> Pixels:
        back_s = 0.0
        if self._at is None or not 0 < float((pts - self._at) * self._stream.time_base) < _SEEK_BEYOND_S:
            self._seek(pts, back_s)
        while True:
            for frame in self._frames:
                on_frame()
                passed = self._at = int(frame.pts)
                if passed == pts:
                    return _rgb(frame)
                if passed > pts:
                    break
            # Containers without an exact table of key frames take us beyond the frame: further back, at last to
            # the beginning, which some reach by no seek at all.
            if back_s == math.inf:
                raise ImageError("changed", f"the frame with timestamp {pts} is not there")
            back_s = max(2 * back_s, _STEP_BACK_S)
            if back_s >= _time_at(pts, self._stream):
                back_s = math.inf
            self._seek(pts, back_s)

    def _seek(self, pts: int, back_s: float) -> None:
        if back_s == math.inf:
            self._container.close()
            self._begin()
            return
        start = self._stream.start_time or 0
        self._container.seek(max(pts - int(back_s / self._stream.time_base), start), stream=self._stream)
        self._frames = iter(_Decoder(self._container, self._stream))


class _Decoder:
    """Frames in the order of display; packets that cannot be decoded and frames without a time are counted."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.container, self.stream = container, stream
        self.damaged = 0
        self._disk_is_well = False

    def __iter__(self) -> Iterator[Any]:
        packets = self.container.demux(self.stream)
        in_a_row = 0
        while in_a_row < _HOPELESS:
            try:
                frames = next(packets).decode()
                in_a_row = 0
            except (StopIteration, av.error.EOFError):
                return
            except av.error.FFmpegError as error:
                if not self._disk_is_well and _is_the_disks(error, self.container.name):
                    raise
                self._disk_is_well = True  # once: a file of a thousand damaged packets is not read a thousand times
                self.damaged += 1
                in_a_row += 1
                packets = self.container.demux(self.stream)  # an error ends the iterator, not the file
                continue
            self.damaged += sum(frame.pts is None for frame in frames)
            yield from (frame for frame in frames if frame.pts is not None)


@contextmanager
def _faults_told(path: str) -> Iterator[None]:
    """What FFmpeg cannot do is the file's fault, unless it is the disk's."""
    try:
        yield
    except av.error.FFmpegError as error:
        if _is_the_disks(error, path):
            raise OSError(error.errno, f"{error.strerror}: {path}") from error
        raise ImageError("corrupt", f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]) from error


def _is_the_disks(error: Exception, path: str) -> bool:
    """Whether the file cannot be read: FFmpeg says "input/output error" and "no memory" of damaged containers, too."""
    if isinstance(error, MemoryError) or not is_of_the_machine(error):
        return False
    try:
        with open(path, "rb") as file:
            while file.read(1 << 22):
                pass
    except OSError:
        return True
    return False


def _opened(path: str) -> Any:
    try:
        return av.open(path, options=_OPTIONS)
    except av.error.FFmpegError as error:
        if _is_the_disks(error, path):
            raise
        text = " ".join(str(error).split())
        raise ImageError("not_an_image", f"not a video that is read ({text[:200]})") from error
    except (ValueError, UnicodeError) as error:
        raise ImageError("corrupt", " ".join(str(error).split())[:200]) from error


def _stream(container: Any, limits: Limits) -> Any:
    if not container.streams.video:
        raise ImageError("not_an_image", "there are no pictures in it, only sound or text")
    stream = container.streams.video[0]
    stream.thread_type = "NONE"  # threads are the caller's to reserve
    check_size((stream.codec_context.width, stream.codec_context.height), limits)
    return stream


def _time_at(pts: int, stream: Any) -> float:
    return round(float((pts - (stream.start_time or 0)) * stream.time_base), 6)


def _upright_size(frame: Any) -> tuple[int, int]:
    return (frame.height, frame.width) if frame.rotation % 180 else (frame.width, frame.height)


def _rgb(frame: Any) -> Pixels:
    pixels = frame.to_ndarray(format="rgb24")
    turns = (frame.rotation // 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns) if turns else pixels)


def _created(container: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(container.metadata["creation_time"].replace("Z", "+00:00"))
    except (KeyError, ValueError):
        return None
    return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
