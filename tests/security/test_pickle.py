"""Nothing that data reaches is unpickled: what may not be called, and what a whole line looks up while it runs."""

from __future__ import annotations

import ast

import pytest

from tests.architecture.repository import python_files, read
from tests.security.conftest import Line

# What can run code of whoever wrote the bytes; weights are safetensors, tables Parquet, documents JSON or YAML.
UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
UNSAFE_CALLS = {
    "eval", "exec", "torch.load", "torch.jit.load", "torch.package.PackageImporter", "np.load", "numpy.load",
    "pd.read_pickle", "pandas.read_pickle", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load",
}  # fmt: skip


def unsafe_in(code: str) -> list[str]:
    """Names of what ``code`` imports or calls that it must not."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in whole if name in UNSAFE_CALLS or name.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in UNSAFE_CALLS and not _is_safe(name, node):
                found.append(name)
            found += [f"{name}(allow_pickle=…)" for keyword in node.keywords if _lets_pickle(keyword)]
    return found


def _is_safe(name: str, call: ast.Call) -> bool:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name.startswith("yaml.load"):
        return given.get("Loader", "").rpartition(".")[2] in ("SafeLoader", "CSafeLoader")
    return name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") == "False"


def _lets_pickle(keyword: ast.keyword) -> bool:
    value = ast.unparse(keyword.value)
    return (keyword.arg == "allow_pickle" and value != "False") or (keyword.arg == "weights_only" and value != "True")


@pytest.mark.parametrize("file", python_files("lib", "workers", "dags", "infra"))
def test_code_unpickles_nothing(file: str) -> None:
    assert unsafe_in(read(file)) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from cloudpickle import loads", "import joblib as j", "torch.load(f)",
        "torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)", "yaml.load(t, Loader=yaml.Loader)",
        "from torch import load", "eval(text)", "pd.read_pickle(f)", "np.savez(f, allow_pickle=yes)",
    ],
)  # fmt: skip
def test_it_would_be_seen(code: str) -> None:
    assert unsafe_in(code)


@pytest.mark.parametrize(
    "code", ["np.load(f)", "yaml.load(t, Loader=yaml.CSafeLoader)", "json.load(f)", "model.eval()"]
)
def test_what_is_safe_is_let_through(code: str) -> None:
    assert unsafe_in(code) == []


def test_a_whole_line_unpickles_nothing(line: Line) -> None:
    """From training to search, verify and forget: no unpickler has looked up a single name."""
    assert line.heard["unpickled"] == []
