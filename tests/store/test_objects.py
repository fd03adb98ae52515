"""One suite for both kinds of store: a folder, and a bucket on a real S3 server."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from damage_atlas.errors import InputError, ObjectExistsError, ObjectNotFoundError, StoreError
from damage_atlas.store import Store
from damage_atlas.store.objects import beside
from tests.support.faulty_proxy import FaultyProxy
from tests.support.s3_server import S3Server


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return Store(tmp_path / "store")
    return Store(f"s3://{request.getfixturevalue('s3_bucket')}/some/prefix")


def test_reads_what_it_created(store: Store) -> None:
    store.create("a/b.bin", b"\x00\xff")
    assert store.read("a/b.bin") == b"\x00\xff"
    assert store.exists("a/b.bin") and not store.exists("a/c.bin") and not store.exists("a")


def test_creates_once(store: Store) -> None:
    store.create("a", b"first")
    with pytest.raises(ObjectExistsError):
        store.create("a", b"second")
    assert store.read("a") == b"first"
    store.create_same("a", b"first")
    with pytest.raises(ObjectExistsError):
        store.create_same("a", b"second")


def test_of_many_that_create_exactly_one_wins(store: Store) -> None:
    def create(n: int) -> bool:
        try:
            Store(store.root).create("versions/00000001.json", f"{n:02d}".encode() * 5000)
        except ObjectExistsError:
            return False
        return True

    with ThreadPoolExecutor(12) as pool:
        won = list(pool.map(create, range(12)))
    assert sum(won) == 1
    assert store.read("versions/00000001.json") == f"{won.index(True):02d}".encode() * 5000


def test_missing_objects_are_named(store: Store) -> None:
    with pytest.raises(ObjectNotFoundError, match="no/such"):
        store.read("no/such")


def test_lists_in_order_below_a_prefix(store: Store) -> None:
    for key in ("runs/b/x", "runs/a/y", "runs/a/x", "runsbeside/z", "run"):
        store.create(key, b"1")
    assert [item.key for item in store.list("runs")] == ["runs/a/x", "runs/a/y", "runs/b/x"]
    assert store.list_folders("runs") == ["a", "b"] and store.list_folders() == ["runs", "runsbeside"]
    assert len(list(store.list())) == 5
    assert list(store.list("nothing")) == [] and store.list_folders("nothing") == []


def test_marks_of_folders_are_no_objects(s3_bucket: str, s3_server: S3Server) -> None:
    store = Store(f"s3://{s3_bucket}/some/prefix")
    store.create("a/b", b"1")
    for mark in ("some/prefix/", "some/prefix/a/", "some/prefix/c/"):
        s3_server.client().put_object(Bucket=s3_bucket, Key=mark, Body=b"")
    assert [item.key for item in store.list()] == ["a/b"] and list(store.list("c")) == []


def test_deletes(store: Store) -> None:
    store.create("a", b"1")
    store.delete("a")
    store.delete("a")
    assert not store.exists("a")


@pytest.mark.parametrize("key", ["", "/a", "a/../b", "../a", "a//b", "a/./b"])
def test_keys_stay_below_the_root(store: Store, key: str) -> None:
    with pytest.raises(InputError, match="is not a key"):
        store.create(key, b"1")


def test_names_of_any_script(store: Store) -> None:
    key = "bilder/Brücke 7 'süd'/löß \"1\" <b>.jpg"
    store.create(key, b"1")
    assert [item.key for item in store.list("bilder")] == [key]
    assert store.read(key) == b"1"


def test_travels_to_other_processes(store: Store) -> None:
    store.create("a", b"1")
    assert pickle.loads(pickle.dumps(store)).read("a") == b"1"


def test_arrow_reads_the_same_objects(store: Store) -> None:
    store.create("a/b", b"hello")
    filesystem, root = store.arrow_filesystem()
    with filesystem.open_input_file(f"{root}/a/b") as stream:
        assert stream.read() == b"hello"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(tmp_path / "file" / "below").create("a", b"1")
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="cannot be written"):  # it is not the object that exists already
        store.create("file/a", b"1")
    store.delete("file/a")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="cannot be deleted"):
        store.delete("folder")


def test_half_written_objects_are_never_listed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / ".part-abc").write_bytes(b"half")
    assert list(store.list()) == []


@pytest.mark.s3
def test_wrong_secret_is_said_so(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match="access denied") as caught:
        Store(f"s3://{s3_bucket}").create("a", b"1")
    assert not caught.value.retryable


@pytest.mark.s3
def test_a_bucket_that_is_not_there(s3_bucket: str) -> None:
    with pytest.raises(StoreError, match="is not there") as caught:
        Store("s3://no-such-bucket-here").create("a", b"1")
    assert not caught.value.retryable


@pytest.mark.parametrize("root", ["ftp://host/x", "s3:///x"])
def test_other_roots_are_refused(root: str) -> None:
    with pytest.raises(InputError):
        Store(root)


@pytest.mark.s3
def test_an_answer_that_breaks_off_is_asked_for_again_though_it_is_the_first(
    s3_bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(f"s3://{s3_bucket}").create("a", b"whole" * 20_000)
    with FaultyProxy(s3_server.endpoint_url, share=0) as proxy:
        fates = ["half an answer", "half an answer"]
        monkeypatch.setattr(proxy, "draw", lambda: fates.pop() if fates else "passed")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        assert Store(f"s3://{s3_bucket}").read("a") == b"whole" * 20_000
    assert not fates, "both were spoilt"


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("/pictures/a%20b.jpg", ("/pictures", "a%20b.jpg")),
        ("file:///pic%20tures/a%20b%25.jpg", ("file:///pic%20tures", "a b%.jpg")),
        ("s3://bucket/pic/a%20b.jpg", ("s3://bucket/pic", "a%20b.jpg")),
        ("/a.jpg", ("/", "a.jpg")),
    ],
)
def test_where_an_object_lies_and_what_it_is_called_there(address: str, wanted: tuple[str, str]) -> None:
    assert beside(address) == wanted


def test_a_file_is_found_by_the_address_that_a_browser_has(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "50% gone.jpg").write_bytes(b"x")
    place, name = beside((folder / "50% gone.jpg").as_uri())
    assert Store(place).read(name) == b"x"
