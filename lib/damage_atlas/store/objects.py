"""The only door to object storage: a folder (``file:///…``) or a bucket prefix (``s3://bucket/prefix``).

Objects are created, read, listed and (old checkpoints only) deleted; never overwritten, copied or renamed.
The one thing asked of a store is put-if-absent: a hard link that fails on a folder, ``If-None-Match: *`` on S3.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from urllib.parse import unquote_to_bytes, urlsplit

from damage_atlas.errors import InputError, ObjectExistsError, ObjectNotFoundError, StoreError

_answered: set[tuple[str, str]] = set()  # endpoints and buckets that this process has reached
_ROUNDS = 5  # of a request that boto3 has given up, 0.8 s to 51 s apart

Names: TypeAlias = list[str]  # inside the classes below, `list` is a method


@dataclass(frozen=True)
class ObjectInfo:
    """One listed object; ``key`` is relative to the store's root.

    Attributes:
        stamp: changes when the object does: the entity tag of S3, a file's time of modification.
    """

    key: str
    size_bytes: int
    stamp: str


class Store:
    """An object store under one root.

    Args:
        root: ``file:///folder``, a plain path, or ``s3://bucket/prefix``. S3 endpoint and credentials come from the
            standard AWS variables (AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID, …).

    Raises:
        InputError: a root of another scheme.
    """

    def __init__(self, root: str | Path) -> None:
        text = str(root)
        if not text or text.startswith("s3:/") and not text.startswith("s3://"):
            raise InputError(f"{text!r} is not a place: give a folder, file:///folder or s3://bucket/prefix.")
        scheme, separator, _ = text.partition("://")
        self._backend: _Backend
        if separator and scheme == "s3":
            parts = urlsplit(text)
            if not parts.netloc:
                raise InputError(f"{text}: an S3 root reads s3://bucket/prefix.")
            self._backend = _S3Backend(parts.netloc, parts.path.strip("/"))
            self.root = text.rstrip("/")
        elif separator and scheme == "file":
            self._backend = _FolderBackend(Path(os.fsdecode(unquote_to_bytes(urlsplit(text).path))))
            self.root = self._backend.folder.as_uri()
        elif separator:
            raise InputError(f"{text}: a store is file:///folder or s3://bucket/prefix, not {scheme}://.")
        else:
            self._backend = _FolderBackend(Path(text).absolute())
            self.root = self._backend.folder.as_uri()

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        # Travels to other processes as its root; clients are opened there.
        return Store, (self.root,)

    @property
    def folder(self) -> Path | None:
        """The folder behind a ``file://`` root, else None."""
        return self._backend.folder if isinstance(self._backend, _FolderBackend) else None

    @property
    def endpoint(self) -> str | None:
        """The address of the S3 server behind an ``s3://`` root, else None."""
        return self._backend.endpoint if isinstance(self._backend, _S3Backend) else None

    def uri(self, key: str) -> str:
        """Where ``key`` lies, for people and for XCom."""
        return f"{self.root}/{key}"

    def read(self, key: str) -> bytes:
        """The object's bytes.

        Raises:
            ObjectNotFoundError: nothing has this name.
            StoreError: the store did not answer.
        """
        return self._backend.read(_checked(key))

    def read_range(self, key: str, start: int, size: int) -> bytes:
        """``size`` bytes from ``start``; fewer at the object's end, none beyond it. Errors as in ``read``."""
        return self._backend.read(_checked(key), start, size)

    def exists(self, key: str) -> bool:
        """Whether an object has this name."""
        return self._backend.exists(_checked(key))

    def create(self, key: str, data: bytes) -> None:
        """Put if absent: all of ``data`` under ``key``, or nothing.

        Raises:
            ObjectExistsError: the name is taken.
            StoreError: the store cannot be written.
        """
        self._backend.create(_checked(key), data)

    def create_same(self, key: str, data: bytes) -> None:
        """Like ``create``, and content when the very same bytes are there already (a repeated piece of work)."""
        try:
            self.create(key, data)
        except ObjectExistsError:
            if self.read(key) != data:
                raise

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with ``prefix/`` (or all), in the order of keys."""
        yield from self._backend.list(_checked_prefix(prefix))

    def list_folders(self, prefix: str = "") -> Names:
        """Names one level below ``prefix`` (or the root) that hold objects, sorted."""
        return self._backend.list_folders(_checked_prefix(prefix))

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens when it is not there."""
        self._backend.delete(_checked(key))

    def digest(self, key: str) -> str:
        """SHA-256 of the object, hexadecimal."""
        return sha256(self.read(key))

    def arrow_filesystem(self) -> tuple[Any, str]:
        """A pyarrow file system on the same endpoint and credentials, and the root's path in it.

        pyarrow ignores AWS_ENDPOINT_URL_S3 (apache/arrow#49643), so it is resolved here and passed on.
        """
        return self._backend.arrow_filesystem()


def absolute(location: str) -> str:
    """An address that means the same from any folder: a path becomes absolute, an s3:// prefix stays.

    Raises:
        InputError: an empty one, which would silently mean the current folder.
    """
    if not location:
        raise InputError("an empty address: give a folder, file:///folder or s3://bucket/prefix.")
    return location if "://" in location else str(Path(location).absolute())


def beside(location: str) -> tuple[str, str]:
    """The folder or prefix that an object lies in, as `Store` takes it, and its name there.

    Raises:
        InputError: an empty address.
    """
    folder, _, name = absolute(location).rpartition("/")
    is_encoded = folder.startswith("file://")  # as `file_uri` encodes it, for browsers; `Store` decodes its own part
    return folder or "/", os.fsdecode(unquote_to_bytes(name)) if is_encoded else name


class RangeReader(io.RawIOBase):
    """Something that is read in ranges, as a file that can be searched; wrap it in a buffer.

    Args:
        read: of (start, size).
        size: of all, bytes.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read, self._size, self._at = read, size, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` as far as there are bytes."""
        data = self._read(self._at, len(buffer)) if self._at < self._size else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def file_stamp(status: os.stat_result) -> str:
    """What changes when a file does, as far as the file system tells."""
    return f"{status.st_mtime_ns}"


def sha256(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _checked(key: str) -> str:
    if key.startswith("/") or any(part in ("", ".", "..") for part in key.split("/")):
        raise InputError(f"{key!r} is not a key: it must stay below the store's root.")
    return key


def _checked_prefix(prefix: str) -> str:
    """Without slashes around it; empty for the root."""
    return _checked(stripped) if (stripped := prefix.strip("/")) else ""


class _Backend(Protocol):
    def read(self, key: str, start: int = 0, size: int | None = None) -> bytes: ...
    def exists(self, key: str) -> bool: ...
    def create(self, key: str, data: bytes) -> None: ...
    def list(self, prefix: str) -> Iterator[ObjectInfo]: ...
    def list_folders(self, prefix: str) -> Names: ...
    def delete(self, key: str) -> None: ...
    def arrow_filesystem(self) -> tuple[Any, str]: ...


class _FolderBackend:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        path = self.folder / key
        try:
            # Not to block on a pipe, whose other end nobody opens.
            with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
                if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                    raise InputError(f"{path} is not a regular file.")
                stream.seek(start)
                return stream.read() if size is None else stream.read(size)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ObjectNotFoundError(f"{path} is not there.") from error
        except IsADirectoryError as error:
            raise InputError(f"{path} is a folder, not a file.") from error
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
                raise InputError(f"{path} cannot be read ({error.strerror}).") from error
            raise StoreError(f"{path} cannot be read ({error.strerror}). Check its permissions.") from error

    def exists(self, key: str) -> bool:
        return (self.folder / key).is_file()

    def create(self, key: str, data: bytes) -> None:
        path = self.folder / key
        temporary: str | None = None
        try:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except FileExistsError as error:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error
            # Same folder, so that the link cannot cross file systems; the leading dot keeps it out of listings.
            handle, temporary = tempfile.mkstemp(prefix=".part-", dir=path.parent)
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.link(temporary, path)
        except FileExistsError as error:
            raise ObjectExistsError(f"{path} exists already.") from error
        except OSError as error:
            # A file stands where a folder is needed: no retry helps, and neither permissions nor space are amiss.
            raise StoreError(
                f"{path} cannot be written ({error.strerror}). Check the folder's permissions and free space.",
                retryable=not isinstance(error, NotADirectoryError),
            ) from error
        finally:
            if temporary is not None:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        base = self.folder / prefix if prefix else self.folder
        if not base.is_dir():
            return
        for path in sorted(p for p in base.rglob("*") if not p.name.startswith(".part-")):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # deleted meanwhile
            if not stat.S_ISREG(status.st_mode):
                continue
            yield ObjectInfo(path.relative_to(self.folder).as_posix(), status.st_size, file_stamp(status))

    def list_folders(self, prefix: str) -> Names:
        base = self.folder / prefix
        return sorted(p.name for p in base.iterdir() if p.is_dir()) if base.is_dir() else []

    def delete(self, key: str) -> None:
        path = self.folder / key
        try:
            with suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
        except OSError as error:
            raise StoreError(f"{path} cannot be deleted ({error.strerror}). Check the folder's permissions.") from error

    def arrow_filesystem(self) -> tuple[Any, str]:
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), str(self.folder)


class _RangeIsEmpty(Exception):
    """The range begins beyond the object's end."""


class _S3Backend:
    def __init__(self, bucket: str, prefix: str) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        self.bucket = bucket
        self.prefix = prefix
        # A session of its own: the default one keeps the first credentials it saw, and is not safe across threads.
        settings = Config(
            retries={"mode": "standard", "max_attempts": 8},
            connect_timeout=10,
            read_timeout=60,
            max_pool_connections=32,
            # Servers other than Amazon's do not all know the newer default checksums.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        try:
            self._client: Any = boto3.session.Session().client("s3", config=settings)
        except (BotoCoreError, ValueError) as error:
            raise InputError(
                f"s3://{bucket}: {' '.join(str(error).split())}. Check AWS_ENDPOINT_URL_S3, AWS_PROFILE and "
                "AWS_DEFAULT_REGION."
            ) from error

    @property
    def endpoint(self) -> str:
        return str(self._client.meta.endpoint_url)

    @property
    def _where(self) -> tuple[str, str]:
        return self.endpoint, self.bucket

    def _path(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def read(self, key: str, start: int = 0, size: int | None = None) -> bytes:
        span = {} if size is None else {"Range": f"bytes={start}-{start + size - 1}"}
        try:
            # The body as well: boto3 repeats requests, but not one whose answer broke off after its head.
            return bytes(self._ask(key, lambda path: self._get(Key=path, **span).read(), names_object=True))
        except _RangeIsEmpty:
            return b""

    def _get(self, **arguments: str) -> Any:
        body = self._client.get_object(Bucket=self.bucket, **arguments)["Body"]
        _answered.add(self._where)  # whatever becomes of the body
        return body

    def exists(self, key: str) -> bool:
        try:
            self._ask(key, lambda path: self._client.head_object(Bucket=self.bucket, Key=path), names_object=True)
            return True
        except ObjectNotFoundError:
            return False

    def create(self, key: str, data: bytes) -> None:
        def put(path: str) -> None:
            self._client.put_object(Bucket=self.bucket, Key=path, Body=data, IfNoneMatch="*")

        self._ask(key, put)

    def _start(self, prefix: str) -> str:
        return self._path(prefix) + "/" if prefix else (f"{self.prefix}/" if self.prefix else "")

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for page in self._pages(Prefix=self._start(prefix)):
            for item in page.get("Contents", []):
                key = item["Key"][len(self.prefix) + 1 if self.prefix else 0 :]
                if not key or key.endswith("/"):
                    continue  # an empty object by which some clients (pyarrow's among them) mark a folder
                yield ObjectInfo(key, item["Size"], item["ETag"].strip('"'))

    def list_folders(self, prefix: str) -> Names:
        start = self._start(prefix)
        return sorted(
            item["Prefix"][len(start) :].rstrip("/")
            for page in self._pages(Prefix=start, Delimiter="/")
            for item in page.get("CommonPrefixes", [])
        )

    def _pages(self, **arguments: str) -> Iterator[Any]:
        token: dict[str, str] = {}
        while True:
            asked = {**arguments, **token}
            page = self._ask(
                arguments["Prefix"].removeprefix(f"{self.prefix}/"),
                lambda _, asked=asked: self._client.list_objects_v2(Bucket=self.bucket, **asked),  # type: ignore[misc]
            )
            yield page
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        self._ask(key, lambda path: self._client.delete_object(Bucket=self.bucket, Key=path))

    def _ask(self, key: str, request: Callable[[str], Any], names_object: bool = False) -> Any:
        """One request, repeated while the server is away: boto3 does so for some seconds, this for some minutes.

        A server that has never answered is more likely misspelt than restarting: there boto3's seconds must do.

        Args:
            names_object: whether 404 speaks of the object; else it speaks of the bucket.
        """
        from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError
        from urllib3.exceptions import HTTPError  # botocore lets some faults within a body through as they are

        attempt = 0
        while True:
            attempt += 1
            try:
                answer = request(self._path(key))
                _answered.add(self._where)
                return answer
            except ClientError as error:
                status = _status(error)
                if status == 412:
                    # A PUT whose answer was lost is repeated and then loses against itself. Whether that happened is
                    # told by the bytes, and create_same() settles it; create() must not guess.
                    raise ObjectExistsError(f"s3://{self.bucket}/{self._path(key)} exists already.") from error
                if status == 416:
                    raise _RangeIsEmpty from error
                if status == 404 and names_object:
                    raise ObjectNotFoundError(f"s3://{self.bucket}/{self._path(key)} is not there.") from error
                may_pass = status in (408, 409, 429) or (status is not None and status >= 500)
                if not may_pass or attempt == _ROUNDS:
                    raise self._failure(key, error) from error
            except (HTTPClientError, ConnectionError, HTTPError) as error:
                if self._where not in _answered or attempt == _ROUNDS:
                    raise self._failure(key, error) from error
            except BotoCoreError as error:
                raise self._failure(key, error) from error
            time.sleep(0.2 * 4**attempt)

    def arrow_filesystem(self) -> tuple[Any, str]:
        from pyarrow.fs import S3FileSystem

        endpoint = urlsplit(self._client.meta.endpoint_url)
        credentials = self._client._request_signer._credentials.get_frozen_credentials()
        filesystem = S3FileSystem(
            access_key=credentials.access_key,
            secret_key=credentials.secret_key,
            session_token=credentials.token,
            region=self._client.meta.region_name,
            scheme=endpoint.scheme,
            endpoint_override=endpoint.netloc,
        )
        return filesystem, "/".join(part for part in (self.bucket, self.prefix) if part)

    def _failure(self, key: str, error: Exception) -> StoreError:
        status = _status(error)
        where = f"s3://{self.bucket}/{self._path(key)}"
        if status in (401, 403):
            return StoreError(
                f"{where}: access denied. Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy.",
                retryable=False,
            )
        if status == 404:
            return StoreError(f"{where}: bucket {self.bucket} is not there. Create it first.", retryable=False)
        check = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if "redentials" in str(error) else "AWS_ENDPOINT_URL_S3"
        return StoreError(f"{where}: {' '.join(str(error).split())}. Check {check} and the server.")


def _status(error: Exception) -> int | None:
    response: dict[str, Any] = getattr(error, "response", None) or {}  # None where an answer broke off
    status: int | None = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status
