"""Decoders in processes of their own: what crashes or hangs costs one file, and the next one is decoded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from damage_atlas.decoding import isolated, pictures
from damage_atlas.decoding.facts import Limits
from damage_atlas.decoding.faults import ImageError
from damage_atlas.errors import MachineError
from damage_atlas.images import encode_jpeg, encode_png

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def idle_child() -> isolated._Child:
    """The process that the next call will use, and no other."""
    isolated._close_idle()
    isolated.decode(encode_png(PICTURE))
    child = isolated._idle.get_nowait()
    isolated._idle.put(child)
    return child


@pytest.mark.parametrize("encode", [encode_png, encode_jpeg])
def test_pixels_and_facts_are_those_of_this_process(encode) -> None:  # type: ignore[no-untyped-def]
    data = encode(PICTURE)
    assert np.array_equal(isolated.decode(data), pictures.decode(data))
    assert isolated.inspect(data) == pictures.inspect(data)


def test_a_process_is_kept_for_the_next_file() -> None:
    first = idle_child().process.pid
    isolated.decode(encode_png(PICTURE))
    kept = isolated._idle.get_nowait()
    isolated._idle.put(kept)
    assert kept.process.pid == first


def test_a_process_that_was_killed_is_replaced() -> None:
    os.kill(idle_child().process.pid, signal.SIGKILL)
    assert np.array_equal(isolated.decode(encode_png(PICTURE)), PICTURE)


def test_a_decoding_goes_on_while_the_caller_does_something_else() -> None:
    begun = isolated.Decoding(encode_png(PICTURE))
    other = encode_png(255 - PICTURE)
    assert np.array_equal(isolated.decode(other), 255 - PICTURE), "by a process of its own"
    assert np.array_equal(begun.result(), PICTURE)


def test_a_decoding_whose_process_was_killed_is_begun_again() -> None:
    child = idle_child()
    begun = isolated.Decoding(encode_png(PICTURE))
    os.kill(child.process.pid, signal.SIGKILL)
    assert np.array_equal(begun.result(), PICTURE)


def test_the_answer_to_a_cancelled_decoding_reaches_nobody() -> None:
    idle_child()
    isolated.Decoding(encode_png(255 - PICTURE)).cancel()
    assert np.array_equal(isolated.decode(encode_png(PICTURE)), PICTURE)


def test_a_decoding_that_fails_says_so_and_frees_its_process() -> None:
    child = idle_child()
    with pytest.raises(ImageError, match="truncated"):
        isolated.Decoding(encode_jpeg(PICTURE)[:-200]).result()
    assert isolated._idle.get_nowait() is child


@pytest.mark.parametrize(("number", "said"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGABRT, "SIGABRT")])
def test_a_crash_costs_one_file(monkeypatch: pytest.MonkeyPatch, number: int, said: str) -> None:
    def crash(child: isolated._Child, request: object, data: bytes) -> object:
        os.kill(child.process.pid, number)
        raise isolated._ChildDied(child._ended())

    with monkeypatch.context() as patched:
        patched.setattr(isolated._Child, "ask", crash)
        with pytest.raises(ImageError) as caught:
            isolated.decode(encode_png(PICTURE))
    assert caught.value.reason == "crash" and said in caught.value.detail
    assert np.array_equal(isolated.decode(encode_png(PICTURE)), PICTURE)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_again_and_again_speaks_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def kill(child: isolated._Child, request: object, data: bytes) -> object:
        os.kill(child.process.pid, number)
        raise isolated._ChildDied(child._ended())

    monkeypatch.setattr(isolated._Child, "ask", kill)
    with pytest.raises(MachineError) as caught:
        isolated.decode(encode_png(PICTURE))
    assert caught.value.retryable


def test_what_a_decoder_says_of_the_machine_is_not_the_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an error of a kind that nobody has thought of costs one file, and not the process."""
    (tmp_path / "sitecustomize.py").write_text(
        "import errno\n"
        "from damage_atlas.decoding import pictures\n"
        "class Odd(Exception): pass\n"
        "ERRORS = {b'odd': Odd('x'), b'disk': OSError(errno.EIO, 'gone'), b'memory': MemoryError('none left')}\n"
        "def fail(data, limits): raise ERRORS[data]\n"
        "pictures.inspect = fail\n"
    )
    isolated._close_idle()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImageError) as caught:
        isolated.inspect(b"odd")
    assert (caught.value.reason, caught.value.detail) == ("corrupt", "Odd: x")
    for data, said in ((b"disk", "gone"), (b"memory", "none left")):
        with pytest.raises(MachineError, match=said) as failed:
            isolated.inspect(data)
        assert failed.value.retryable
    isolated._close_idle()


def test_processes_that_died_idle_cost_no_file() -> None:
    """However many: somebody tidied up, and the next file has two tries."""
    isolated._close_idle()
    children = [isolated._Child() for _ in range(3)]
    for child in children:
        isolated._give_back(child)
    for child in children:
        child.process.kill()
        child.process.wait()
    assert np.array_equal(isolated.decode(encode_png(PICTURE)), PICTURE)


def test_a_process_that_cannot_start_speaks_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    isolated._close_idle()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(MachineError, match="could not be started"):
        isolated.decode(encode_png(PICTURE))


def test_what_lies_in_the_current_folder_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("simplejpeg", "json", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\nraise SystemExit")
    monkeypatch.chdir(tmp_path)
    isolated._close_idle()
    assert np.array_equal(isolated.decode(encode_png(PICTURE)), PICTURE) and not (tmp_path / "owned").exists()


def test_a_machine_that_stood_still_costs_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the alarm a pause of the whole machine is a decoder that hangs; once more, and it is not."""
    asked: list[int] = []
    ask = isolated._Child.ask

    def slow_once(child: isolated._Child, request: dict[str, object], data: bytes) -> object:
        asked.append(child.process.pid)
        if len(asked) == 1:
            os.kill(child.process.pid, signal.SIGALRM)
            raise isolated._ChildDied(child._ended())
        return ask(child, request, data)

    monkeypatch.setattr(isolated._Child, "ask", slow_once)
    assert np.array_equal(isolated.decode(encode_png(PICTURE)), PICTURE) and len(set(asked)) == 2
    begun = isolated.Decoding(encode_png(PICTURE))
    assert begun._child is not None
    os.kill(begun._child.process.pid, signal.SIGALRM)
    assert np.array_equal(begun.result(), PICTURE)


def test_a_hang_costs_one_file() -> None:
    slow = np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), dtype=np.uint8)
    with pytest.raises(ImageError) as caught:
        isolated.decode(encode_jpeg(slow), Limits(decode_limit_s=0.005))
    assert caught.value.reason == "hang" and "0.005 s" in caught.value.detail
    assert np.array_equal(isolated.decode(encode_png(PICTURE)), PICTURE)


def test_the_process_ends_with_its_caller(tmp_path: Path) -> None:
    script = (
        "import sys; from damage_atlas.decoding import isolated\n"
        "isolated.decode(open(sys.argv[1], 'rb').read())\n"
        "child = isolated._idle.get_nowait(); print(child.process.pid, flush=True)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (tmp_path / "a.png").write_bytes(encode_png(PICTURE))
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.png")], capture_output=True, check=False)
    child = int(done.stdout)
    deadline = time.monotonic() + 30
    while lives(child):
        assert time.monotonic() < deadline, "the decoder outlives its caller"
        time.sleep(0.05)


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_importing_the_package_loads_little() -> None:
    script = "import sys, damage_atlas.decoding.child; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pyarrow", "pydantic", "av", "boto3", "faiss"} & set(loaded)
