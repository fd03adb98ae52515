"""What can be wrong with a file: the fixed list of reasons, and the error that carries one of them."""

from __future__ import annotations

import errno
import struct
import zlib
from typing import Final

# Reports, metrics and tests group by it.
QUARANTINE_REASONS: Final = {
    "empty": "the file has no bytes",
    "truncated": "the picture ends before its last row",
    "not_an_image": "the bytes are of no picture format that is read",
    "corrupt": "the picture's data is damaged",
    "bomb": "the picture declares more pixels than the limit",
    "too_small": "the picture has a side below the limit",
    "crash": "the decoder crashed on the file",
    "hang": "decoding took longer than the limit, twice",
    "unsafe_member": "a member of a tar file that is no plain file below it, or repeats a name",
    "link_outside": "a symbolic link leaves the image folder",
    "unreadable": "the file cannot be opened, or the bucket refuses this object; every run tries again",
    "vanished": "the file was there at listing and is gone",
    "changed": "the file's bytes changed between listing and embedding",
    "no_vector": "the vectors that were given with --vectors name no such image",
}

# What may be otherwise without any change to the file.
PASSING_REASONS: Final = frozenset({"vanished", "changed", "unreadable"})

# What Pillow's decoders raise over damaged bytes. MemoryError is not among them: it speaks of the machine.
DECODER_FAULTS: Final = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
)


# A disk or a network below it that fails says nothing about the file that was just read.
_DISK_FAULTS: Final = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENXIO, errno.ENODEV, errno.EREMOTEIO})


def is_of_the_machine(error: BaseException) -> bool:
    """Whether an error of a decoder speaks of memory or of a disk, and not of the file."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _DISK_FAULTS)


class ImageError(Exception):
    """A file is not a usable picture.

    Attributes:
        reason: a key of ``QUARANTINE_REASONS``.
        detail: for people: what exactly was wrong.
    """

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in QUARANTINE_REASONS, reason
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
