"""Pictures of an archive: where their pixels come from, one preprocessing for train, embed and explain.

Decoding itself is in ``decoding/``, in processes of its own.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from PIL import Image

from damage_atlas.decoding.facts import DEFAULT_LIMITS, Limits, PictureFacts, Pixels
from damage_atlas.decoding.faults import ImageError
from damage_atlas.decoding.isolated import Decoding, VideoFrames, decode, inspect
from damage_atlas.errors import InputError, ObjectNotFoundError, StoreError
from damage_atlas.store.objects import Store, sha256

__all__ = [
    "SOURCE_COLUMNS",
    "ImageError",
    "Limits",
    "PhotoReader",
    "PictureFacts",
    "Pixels",
    "Source",
    "Tile",
    "decode",
    "encode_jpeg",
    "encode_png",
    "escape_name",
    "file_uri",
    "inspect",
    "local_copy",
    "preprocess",
    "read_file",
    "unescape_name",
]

_TILE_COLUMNS: Final = ("tile_x", "tile_y", "tile_width", "tile_height")
# Columns of the observations that say where an observation's pixels come from.
SOURCE_COLUMNS: Final = ("file", "sha256", "container", "byte_start", "size_bytes", "frame", *_TILE_COLUMNS)
_READ_AHEAD: Final = 8 << 20  # bytes: members of a tar file are read one after the other


@dataclass(frozen=True)
class Tile:
    """A box in the pixels of an upright photo."""

    x: int
    y: int
    width: int
    height: int

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Tile | None:
        """The tile of a row of the observations; None for a whole image."""
        return None if row["tile_x"] is None else cls(*(row[name] for name in _TILE_COLUMNS))

    def cut(self, pixels: Pixels) -> Pixels:
        """This box of ``pixels``, as a view."""
        return pixels[self.y : self.y + self.height, self.x : self.x + self.width]


@dataclass(frozen=True)
class Source:
    """Where an observation's pixels come from: a file, a member of a tar file, a frame of a video; or a tile of one.

    Attributes:
        file: relative to the image folder, escaped by ``escape_name``.
        sha256: what the bytes must hash to; not checked when None.
        container: the tar file that holds it.
        byte_start: where its ``size_bytes`` bytes begin in the container.
        frame: presentation timestamp of a frame, in its stream's units.
    """

    file: str
    sha256: str | None = None
    container: str | None = None
    byte_start: int | None = None
    size_bytes: int | None = None
    frame: int | None = None
    tile: Tile | None = None

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Source:
        """The source of a row of the observations that holds ``SOURCE_COLUMNS``."""
        plain = {name: row[name] for name in SOURCE_COLUMNS if name not in _TILE_COLUMNS}
        return cls(**plain, tile=Tile.of_row(row))

    @property
    def place(self) -> tuple[Any, ...]:
        """Sorts sources so that each file is read once, from its beginning to its end."""
        tile = self.tile or Tile(-1, -1, 0, 0)
        return (self.container or self.file, self.byte_start or 0, self.file, self.frame or 0, tile.y, tile.x)


def preprocess(pixels: Pixels, size: int = 160) -> Pixels:
    """Resize H x W x 3 pixels to the network's input, size x size x 3, with antialiasing.

    The aspect ratio is given up, as in the paper: nothing of the picture is cut off. The filter is Pillow's bilinear
    one, to one grey level, in torch's faster form.
    """
    import torch

    image_HWC = torch.from_numpy(np.require(pixels, requirements="W"))  # torch has no read-only tensors
    # By this order of axes torch knows them for channels-last: faster, and the result lies in memory as pictures do.
    image_1CHW = image_HWC[None].permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(image_1CHW, size=(size, size), mode="bilinear", antialias=True)
    return small[0].permute(1, 2, 0).numpy()


def encode_jpeg(pixels: Pixels, quality: int = 85) -> bytes:
    """H x W x 3 pixels as a JPEG file."""
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(sink, "JPEG", quality=quality, optimize=True)
    return sink.getvalue()


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """H x W x 3 (or H x W, or H x W x 4) pixels as a PNG file."""
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(sink, "PNG")
    return sink.getvalue()


class PhotoReader:
    """Reads pictures and tiles of them; the last photo stays decoded, since its tiles come one after the other.

    One reader belongs to one thread. Use as a context manager where videos are read: a copy may lie on the disk.

    Args:
        images_root: a folder or an ``s3://`` prefix.
    """

    def __init__(self, images_root: str, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._store = Store(images_root)
        self._last: Source | None = None
        self._pixels: Pixels | None = None
        self._ahead: tuple[Source, Decoding] | None = None
        self._window: tuple[str, int, bytes] | None = None
        self._video: _OpenVideo | None = None

    def __enter__(self) -> PhotoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._take_ahead(None)
        if self._video is not None:
            self._video.close()
            self._video = None

    def read_each(self, sources: Sequence[Source]) -> Iterator[Pixels | ImageError]:
        """``read`` of each source in turn, or why it cannot be; while the caller works on one, the next is decoded.

        Raises:
            StoreError: as there.
        """
        for source, following in zip_longest(sources, sources[1:]):
            result: Pixels | ImageError
            try:
                result = self.read(source)
            except ImageError as error:
                result = error
            if following is not None:
                self._begin(replace(following, tile=None))
            yield result

    def _begin(self, whole: Source) -> None:
        if whole == self._last or whole.frame is not None:
            return
        with suppress(ImageError, StoreError):  # read() will meet it again, and say so
            self._ahead = whole, Decoding(self._bytes(whole), self.limits)

    def _take_ahead(self, whole: Source | None) -> Decoding | None:
        """What was begun, if it is ``whole``; anything else is given up."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead[0] == whole:
            return ahead and ahead[1]
        ahead[1].cancel()
        return None

    def read(self, source: Source) -> Pixels:
        """One photo or frame, or one tile of it, H x W x 3.

        Raises:
            ImageError: vanished, changed, or not a sound picture any more.
            StoreError: the store did not answer; says nothing about the picture.
        """
        whole = replace(source, tile=None)
        if self._last != whole or self._pixels is None:
            self._last = self._pixels = None
            if whole.frame is not None:
                self._pixels = self._read_frame(whole)
            elif ahead := self._take_ahead(whole):
                self._pixels = ahead.result()
            else:
                self._pixels = decode(self._bytes(whole), self.limits)
            self._last = whole
        if source.tile is None:
            return self._pixels
        cut = source.tile.cut(self._pixels)
        if cut.shape[:2] != (source.tile.height, source.tile.width):
            raise ImageError("changed", f"{source.tile} does not lie inside the photo")
        return cut

    def _bytes(self, source: Source) -> bytes:
        if source.container is None:
            return read_file(self._store, source.file, source.sha256)
        assert source.byte_start is not None and source.size_bytes is not None
        held = self._window
        end = source.byte_start + source.size_bytes
        if (
            held is None
            or held[0] != source.container
            or not held[1] <= source.byte_start <= end <= held[1] + len(held[2])
        ):
            size = max(source.size_bytes, _READ_AHEAD)
            held = (
                source.container,
                source.byte_start,
                read_file(self._store, source.container, None, source.byte_start, size),
            )
            self._window = held
        data = held[2][source.byte_start - held[1] : end - held[1]]
        return _same(data, source.sha256)

    def _read_frame(self, source: Source) -> Pixels:
        if self._video is not None and self._video.file != source.file:
            self._video.close()
            self._video = None
        if self._video is None:
            self._video = _OpenVideo(self._store, source, self.limits)
        assert source.frame is not None
        return self._video.frames.read(source.frame)


class _OpenVideo:
    """A video that frames are read from: the file itself, or a copy of it on this machine's disk."""

    def __init__(self, store: Store, source: Source, limits: Limits) -> None:
        self.file = source.file
        self._copy, path = local_copy(store, source.file)
        try:
            if source.sha256 is not None and file_sha256(path) != source.sha256:
                raise ImageError("changed", "the bytes are not those that were catalogued")
        except BaseException:
            self._close_copy()
            raise
        self.frames = VideoFrames(path, limits)

    def close(self) -> None:
        self.frames.__exit__()
        self._close_copy()

    def _close_copy(self) -> None:
        if self._copy is not None:
            self._copy.close()


def local_copy(store: Store, file: str) -> tuple[IO[bytes] | None, str]:
    """A path that decoders can open; from a bucket, that of a temporary copy, which goes when it is closed.

    Raises:
        ImageError, StoreError: as in ``PhotoReader.read``; StoreError as well where there is no room for the copy.
    """
    if store.folder is not None:
        path = store.folder / unescape_name(file)
        read_file(store, file, None, 0, 1)  # there, a regular file, and ours to open
        return None, str(path)
    copy = tempfile.NamedTemporaryFile(prefix="damage-atlas-video-", suffix=Path(file).suffix)  # noqa: SIM115
    try:
        start = 0
        while block := read_file(store, file, None, start, _READ_AHEAD):
            copy.write(block)
            start += len(block)
        copy.flush()
    except OSError as error:
        copy.close()
        raise StoreError(
            f"{tempfile.gettempdir()} has no room for a copy of {file} ({error.strerror}). Free some, or let TMPDIR "
            "name another folder."
        ) from error
    except BaseException:
        copy.close()
        raise
    return copy, copy.name


def file_sha256(path: str) -> str:
    """SHA-256 of a file of any size, hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_file(
    store: Store, file: str, expected_sha256: str | None = None, start: int = 0, size: int | None = None
) -> bytes:
    """The bytes of a photo, or ``size`` of them from ``start``; errors as in ``PhotoReader.read``."""
    try:
        name = unescape_name(file)
        data = store.read(name) if size is None else store.read_range(name, start, size)
    except ObjectNotFoundError as error:
        _check_root(store)
        raise ImageError("vanished", "nothing has this name any more") from error
    except InputError as error:
        raise ImageError("unreadable", "the name is not a path below the image folder") from error
    except StoreError as error:
        # A file that this user may not open is the file's fault; a disk or a network that fails is not.
        cause = getattr(error.__cause__, "errno", None)
        if cause in (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP):
            raise ImageError("unreadable", os.strerror(cause)) from error
        if store.folder is None and not error.retryable:
            _check_root(store)  # else it is not this object alone that the bucket refuses: archived, or of another key
            raise ImageError("unreadable", error.message[:200]) from error
        raise
    return _same(data, expected_sha256)


def _same(data: bytes, expected_sha256: str | None) -> bytes:
    if expected_sha256 is not None and sha256(data) != expected_sha256:
        raise ImageError("changed", "the bytes are not those that were catalogued")
    return data


def escape_name(name: str) -> str:
    r"""A file name as text: ``\`` becomes ``\\``, a byte that is not UTF-8 ``\xNN``; all else stays."""
    return re.sub("[\udc80-\udcff]", lambda m: f"\\x{ord(m[0]) - 0xDC00:02x}", name.replace("\\", "\\\\"))


def unescape_name(name: str) -> str:
    """The inverse of ``escape_name``: what the operating system calls the file."""
    return re.sub(r"\\(\\|x([0-9a-f]{2}))", lambda m: chr(0xDC00 + int(m[2], 16)) if m[2] else "\\", name)


def file_uri(store: Store, file: str, container: str | None = None, time_s: float | None = None) -> str:
    """Where a picture lies; percent-encoded for ``file://``, so that a browser opens any name.

    Args:
        container: the tar file it is a member of; its name within follows a ``#``.
        time_s: of a video's frame; as a media fragment (W3C), so that a player goes to it.
    """
    holder, member = (file, "") if container is None else (container, f"#{quote(file[len(container) + 1 :])}")
    fragment = member if time_s is None else f"#t={time_s:.6f}".rstrip("0").rstrip(".")
    if store.folder is None:
        return store.uri(unescape_name(holder)) + fragment
    return f"{store.root}/{quote(os.fsencode(unescape_name(holder)))}{fragment}"


def _check_root(store: Store) -> None:
    """Raise StoreError when not one photo but all are out of reach: unmounted, or the bucket is gone."""
    if store.folder is not None and not store.folder.is_dir():
        raise StoreError(f"{store.folder} is not there any more. Mount it and try again.")
    if store.folder is None:
        next(store.list(), None)
