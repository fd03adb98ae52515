"""What is there: a folder or an S3 prefix, in the order of names, and nothing from outside it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from damage_atlas.errors import InputError, StoreError
from damage_atlas.images import escape_name
from damage_atlas.store.objects import Store, file_stamp

_VIDEO_SUFFIXES: Final = frozenset(
    ".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .ts .mts .m2ts .wmv .asf .flv .ogv .dv .mxf .3gp".split()  # noqa: SIM905
)
_TAR_SUFFIX: Final = ".tar"  # uncompressed, so that a member can be read without those before it
# By their names these are pictures, so each becomes a row; the last five are formats that are not read.
_PICTURE_SUFFIXES: Final = frozenset(
    ".jpg .jpeg .jpe .jfif .png .tif .tiff .webp .bmp .gif .heic .heif .avif .jp2 .jxl".split()  # noqa: SIM905
)
# What operating systems, archivers and photo stations leave behind.
_SYSTEM_FOLDERS: Final = frozenset({"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"})


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file with the name of a picture, a video or a tar file; ``reason`` says why it will not even be opened.

    Attributes:
        file: relative to the image folder, escaped by ``images.escape_name``.
        fingerprint: size and stamp: while it stays the same, so does the file; None where nothing is known.
    """

    file: str
    size_bytes: int | None = None
    fingerprint: str | None = None
    reason: str | None = None
    detail: str | None = None

    @property
    def is_tar(self) -> bool:
        """Whether it holds pictures as members."""
        return _suffix(self.file) == _TAR_SUFFIX

    @property
    def is_video(self) -> bool:
        """Whether it holds pictures as frames."""
        return _suffix(self.file) in _VIDEO_SUFFIXES


@dataclass
class Listing:
    """Pictures, videos and tar files, and everything else, both sorted by name."""

    files: list[ListedFile] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)  # side-cars, hidden files, folders ending in /


def list_images(
    store: Store,
    skip: str | None = None,
    on_file: Callable[[], None] = lambda: None,
    named: Collection[str] = frozenset(),
) -> Listing:
    """List an image folder.

    Hidden files and folders and files without a picture's name are ignored. A link to a file inside the
    folder is that file again, a link out of it a quarantined file, and a link to a folder inside it is
    ignored, so that loops end.

    Args:
        skip: a sub-folder that holds no images of the archive: the store of the run.
        on_file: called for each name that was seen: a large prefix takes minutes.
        named: files that count whatever their suffix is, escaped.

    Raises:
        InputError: the folder is not there.
        StoreError: it cannot be read.
    """
    listing = Listing()
    stamps: dict[str, str] = {}  # of CSV files, which may speak of a video
    if store.folder is None:
        for item in store.list():
            on_file()
            if skip is not None and item.key.startswith(f"{skip}/"):
                continue
            if not item.key.endswith("/"):
                fingerprint = f"{item.size_bytes}-{item.stamp}"
                if _suffix(item.key) == ".csv":
                    stamps[escape_name(item.key)] = fingerprint
                _sort_in(listing, item.key, ListedFile(escape_name(item.key), item.size_bytes, fingerprint), named)
    else:
        if not store.folder.is_dir():
            what = "is not a folder" if store.folder.exists() else "is not there"
            raise InputError(f"images: {store.folder} {what}. Give the folder that holds the images.")
        for name, listed in _walk(str(store.folder), os.path.realpath(store.folder), skip, named):
            on_file()
            if listed is None:
                listing.ignored.append(escape_name(name))
            else:
                if _suffix(name) == ".csv" and listed.fingerprint:
                    stamps[listed.file] = listed.fingerprint
                _sort_in(listing, name, listed, named)
    listing.files = [_with_side_car(file, stamps) for file in listing.files]
    listing.files.sort(key=lambda listed: listed.file)
    listing.ignored.sort()
    return listing


def _with_side_car(file: ListedFile, stamps: dict[str, str]) -> ListedFile:
    """A video changes when the CSV beside it does."""
    stamp = stamps.get(f"{os.path.splitext(file.file)[0]}.csv") if file.is_video else None
    return file if stamp is None else replace(file, fingerprint=f"{file.fingerprint}+{stamp}")


def _sort_in(listing: Listing, name: str, listed: ListedFile, named: Collection[str]) -> None:
    parts = name.split("/")
    hidden = any(part.startswith(".") or part.lower() in _SYSTEM_FOLDERS for part in parts)
    if hidden or (listed.reason is None and not _is_ours(name, named)):
        listing.ignored.append(listed.file)
    else:
        listing.files.append(listed)


def is_picture_name(name: str) -> bool:
    """Whether a file of this name is taken for a picture."""
    return _suffix(name) in _PICTURE_SUFFIXES


def _is_ours(name: str, named: Collection[str]) -> bool:
    by_suffix = is_picture_name(name) or _suffix(name) in _VIDEO_SUFFIXES or _suffix(name) == _TAR_SUFFIX
    return by_suffix or escape_name(name) in named


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _walk(top: str, root: str, skip: str | None, named: Collection[str]) -> Iterator[tuple[str, ListedFile | None]]:
    """(relative name, file) of all below ``top``, in no order; None for a folder that is not entered."""
    waiting = [(top, "")]  # a list, not recursion: folders may lie deeper than Python's stack
    while waiting:
        folder, prefix = waiting.pop()
        for entry in _entries(folder):
            name = prefix + entry.name
            if entry.is_symlink():
                yield _follow(entry.path, name, root, named)
            elif entry.is_dir():
                hidden = entry.name.startswith(".") or entry.name.lower() in _SYSTEM_FOLDERS
                if hidden or name == skip:
                    yield f"{name}/", None
                else:
                    waiting.append((entry.path, f"{name}/"))
            else:
                yield name, _listed(name, entry, named)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise StoreError(
            f"{escape_name(folder)} cannot be listed ({error.strerror}). Check its permissions.",
            retryable=not isinstance(error, PermissionError),
        ) from error


def _follow(path: str, name: str, root: str, named: Collection[str]) -> tuple[str, ListedFile | None]:
    target = os.path.realpath(path)
    file = escape_name(name)
    if os.path.commonpath([root, target]) != root:
        is_ours = os.path.isdir(target) or _is_ours(name, named)
        return name, ListedFile(file, None, None, "link_outside", "its target lies elsewhere") if is_ours else None
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        detail = f"symbolic link: {os.strerror(error.errno or 0)}"
        return name, ListedFile(file, None, None, "unreadable", detail) if _is_ours(name, named) else None
    return (f"{name}/", None) if is_folder else (name, _listed(name, path, named))


def _listed(name: str, path: str | os.DirEntry[str], named: Collection[str]) -> ListedFile:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return ListedFile(escape_name(name))  # gone since scandir; opening it will say so
    if stat.S_ISREG(status.st_mode) or not _is_ours(name, named):
        fingerprint = f"{status.st_size}-{file_stamp(status)}"
        return ListedFile(escape_name(name), status.st_size, fingerprint)
    # Opening a pipe would wait for ever.
    return ListedFile(escape_name(name), None, None, "unreadable", "not a regular file")
