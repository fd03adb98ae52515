"""Tar files as folders of pictures (WebDataset): members in order, hostile ones refused, damage noticed."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

from damage_atlas.catalog.listing import ListedFile, is_picture_name
from damage_atlas.decoding.faults import ImageError
from damage_atlas.images import escape_name, read_file
from damage_atlas.store.objects import RangeReader, Store

_BUFFER: Final = 8 << 20  # bytes read at a time: a bucket answers each request with the same delay
_NOTE_SUFFIXES: Final = (".json", ".cls")
_LARGEST_NOTE: Final = 1 << 20  # bytes
_LARGEST_HEADER: Final = 1 << 20  # bytes
_EXTENDED: Final = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _BoundedHeader(tarfile.TarInfo):
    """A header; tarfile reads an extended one, of long names and more, whole, however long it says it is."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTENDED and header.size > _LARGEST_HEADER:
            raise tarfile.ReadError(f"an extended header of {header.size:,} bytes")
        return header


@dataclass(frozen=True)
class Member:
    """A picture in a tar file, or a note beside one; ``error`` says why it cannot be used."""

    name: str  # escaped
    byte_start: int
    data: bytes = b""
    error: ImageError | None = None

    @property
    def stem(self) -> str:
        """What a picture and its notes share: the name up to the first dot after the last folder."""
        folder, slash, base = self.name.rpartition("/")
        return folder + slash + base.partition(".")[0]

    @property
    def is_note(self) -> bool:
        """Whether it speaks of a picture rather than being one."""
        return self.name.lower().endswith(_NOTE_SUFFIXES)


def read_members(store: Store, listed: ListedFile, max_bytes: int) -> Iterator[Member]:
    """Members of a tar file that are pictures or notes, in the order of the file; each name once.

    Args:
        max_bytes: of a member; it is read as a whole.

    Raises:
        ImageError: not a tar file, or damaged from some member on (raised after those before it).
        StoreError: the store did not answer.
    """
    size = listed.size_bytes or 0
    if not size:
        raise ImageError("empty", "0 bytes")
    reader = RangeReader(lambda start, length: read_file(store, listed.file, None, start, length), size)
    stream = io.BufferedReader(reader, _BUFFER)
    seen: set[str] = set()
    try:
        with tarfile.open(fileobj=stream, mode="r:", tarinfo=_BoundedHeader, errors="surrogateescape") as tar:
            for info in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # it keeps what it has seen, however many there are
                name = escape_name(info.name.removeprefix("./"))
                is_note = name.lower().endswith(_NOTE_SUFFIXES)
                if info.isdir() or not (is_picture_name(name) or (is_note and info.size <= _LARGEST_NOTE)):
                    continue
                if (wrong := _what_is_wrong(info, name in seen, size, max_bytes)) is None:
                    tar_data = tar.extractfile(info)
                    assert tar_data is not None
                    yield Member(name, info.offset_data, tar_data.read())
                elif not is_note:
                    # Its place makes the name its own, whatever it says.
                    yield Member(f"{_harmless(name)}-{info.offset}", info.offset_data, error=wrong)
                seen.add(name)
            end = tar.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise ImageError("corrupt", f"not a tar file that can be read ({error})") from error
    # tarfile takes a damaged header for the end, and a hole of zeros, and where a second tar file was appended.
    stream.seek(end)
    while block := stream.read(_BUFFER):
        if block.strip(b"\0"):
            raise ImageError("corrupt", f"at byte {end:,} is a hole or another tar file; what follows is not read")
    if end > size:
        raise ImageError("truncated", f"the tar file ends at byte {size:,}, inside a member")


def _what_is_wrong(info: tarfile.TarInfo, is_repeated: bool, tar_size: int, max_bytes: int) -> ImageError | None:
    if not info.isreg() or info.issparse():
        return ImageError("unsafe_member", "a link, a device or a sparse file")
    if info.name.startswith("/") or any(part in ("", ".", "..") for part in info.name.removeprefix("./").split("/")):
        return ImageError("unsafe_member", "its name leads out of the tar file")
    if is_repeated:
        return ImageError("unsafe_member", "an earlier member has the same name")
    if info.offset_data + info.size > tar_size:
        return ImageError("truncated", "the tar file ends inside this member")
    if info.size > max_bytes:
        return ImageError("bomb", f"{info.size:,} bytes, the limit is {max_bytes:,}")
    return None


def _harmless(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", ".", "..")) or "nameless"
