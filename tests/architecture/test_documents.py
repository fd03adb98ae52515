"""The documents name what is there: commands, options, settings, files, functions, targets; the tree is the disk."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import PurePosixPath

import click
import pytest
import typer.main

from damage_atlas.cli import app
from damage_atlas.spec import Settings
from tests.architecture.repository import ROOT, code_of, documents, files, python_files, read

BINARY = (".png", ".jpg", ".ico", ".xz")
# A path of somebody's machine, and hosts of registries: what works here must work elsewhere. Written in pieces, so
# that this file does not match itself.
PIECES = ("/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/", "arti" + "factory", "nexus" + r"\.", "index-url" + "[ =]http")
NOT_OURS = re.compile("|".join(PIECES))
SETTING = re.compile(rf"\b({'|'.join(Settings.model_fields)})\.([a-z_]+)\b")


@cache
def commands() -> dict[str, click.Command]:
    group = typer.main.get_command(app)
    return dict(group.commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", commands())
def test_command_is_described(name: str) -> None:
    assert (commands()[name].help or "").strip(), f"damage-atlas {name} has no help"
    for parameter in commands()[name].params:
        if isinstance(parameter, click.Option) or getattr(parameter, "help", None) is not None:
            assert getattr(parameter, "help", None), f"damage-atlas {name}: {parameter.name} has no help"
    shown = [line for document in documents() for line in code_of(document)]
    assert any(re.search(rf"\bdamage-atlas {name}\b", line) for line in shown), f"no document shows {name}"


@pytest.mark.parametrize("document", documents())
def test_document_names_only_what_is_there(document: str) -> None:
    makefile = set(re.findall(r"^([a-z][a-z-]*):", read("Makefile"), re.MULTILINE))
    settings = {f"{section}.{key}" for section, values in Settings() for key, _ in values}
    for line in code_of(document):
        line = line.split("  #")[0]
        for name in re.findall(r"\bdamage-atlas ([a-z]+)", line):
            assert name in commands(), f"there is no command `damage-atlas {name}`"
            known = {option for parameter in commands()[name].params for option in parameter.opts} | {"--help"}
            unknown = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", line.partition(f"damage-atlas {name}")[2])) - known
            assert not unknown, f"damage-atlas {name} has no option {unknown}"
        if target := re.match(r"make ([a-z][a-z-]*)", line):
            assert target[1] in makefile, f"there is no target `make {target[1]}`"
        for match in SETTING.finditer(line):
            is_module = "/" in line or f"{match[1]}.{match[2]}" in {"index.faiss", "index.html"}
            is_setting = match[0] in settings or match[2] in {"py", "md", "parquet", "yaml", "json", "html", "csv"}
            assert is_setting or is_module or f"damage_atlas.{match[1]}" in line, f"{match[0]} is not a setting"


@pytest.mark.parametrize("document", documents())
def test_links_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", read(document)):
        if not target.startswith(("http://", "https://")):
            path = (ROOT / document).parent / target
            assert path.exists(), f"{document} links to {target}, which is not there"


def test_tour_names_modules_and_functions_that_exist() -> None:
    """A function belongs to the module that the tour named last."""
    module = ""
    seen = 0
    for span in re.findall(r"`([^`\n]+)`", read("docs/tour.md")):
        if re.fullmatch(r"(lib|workers|dags|infra|docs)/[\w./-]*", span):
            assert (ROOT / span).exists(), f"docs/tour.md names {span}, which is not there"
            if span.endswith(".py"):
                module = span
        elif call := re.fullmatch(r"([A-Za-z_][\w.]*)\(\)", span):
            seen += 1
            assert call[1] in defined_in(module), f"docs/tour.md: {module} defines no {call[1]}()"
    assert seen > 20


@cache
def defined_in(file: str) -> frozenset[str]:
    """Functions and classes of a module, methods as Class.method."""
    names: set[str] = set()
    for node in ast.parse(read(file)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
    return frozenset(names)


@pytest.mark.parametrize("document", ["docs/method.md", "docs/formats.md", "docs/glossary.md", "CONTRIBUTING.md"])
def test_modules_and_functions_named_elsewhere_exist(document: str) -> None:
    defined = {name for file in python_files("lib", "workers", "dags", "infra") for name in defined_in(file)}
    for span in re.findall(r"`([^`\n]+)`", read(document)):
        if re.fullmatch(r"(lib|workers|dags|infra|tests|docs)/[\w./-]+", span) and "NAME" not in span:
            assert (ROOT / span).exists(), f"{document} names {span}, which is not there"
        elif call := re.fullmatch(r"([A-Za-z_][\w.]*)\(\)", span):
            assert call[1] in defined, f"{document}: nothing defines {call[1]}()"


def test_tree_of_the_readme_is_the_disk() -> None:
    """A folder whose content the tree lists must be listed whole; others may stay closed."""
    block = read("README.md").partition("## The tree")[2].partition("```\n")[2].partition("```")[0]
    listed: dict[str, list[str]] = {"": []}
    path: list[str] = []
    for line in block.splitlines():
        match = re.fullmatch(r"( *)(\S+?)(/?) {2,}(\S.*)", line)
        assert match, f"not a line of a tree (name, two blanks, what it is): {line!r}"
        path = [*path[: len(match[1]) // 2], match[2]]
        listed.setdefault("/".join(path[:-1]), []).append(match[2] + match[3])
    wrong = {}
    for folder, names in listed.items():
        on_disk = set()
        for file in files():
            if not folder or file.startswith(f"{folder}/"):
                first, *rest = PurePosixPath(file).relative_to(folder or ".").parts
                on_disk.add(f"{first}/" if rest else first)
        only = {"in the tree": sorted(set(names) - on_disk), "on disk": sorted(on_disk - set(names))}
        wrong |= {f"{folder or '.'}, only {where}": found for where, found in only.items() if found}
    assert not wrong


def test_make_runs_every_test() -> None:
    recipe = read("Makefile").partition("\ntest: ")[2].partition("\n\n")[0]
    folders = {"/".join(file.split("/")[:2]) for file in python_files("tests") if PurePosixPath(file).match("test_*")}
    named = set(re.findall(r"tests/\w+", recipe))
    alone = {"tests/compose"}  # needs Docker, which a developer's machine may lack: `make test-compose`
    assert all(folder in read("Makefile") for folder in alone)
    assert not named or folders - named - alone == set(), "folders of tests that `make test` leaves out"


@pytest.mark.parametrize("file", [file for file in files() if not file.endswith(BINARY)])
def test_no_file_names_a_machine(file: str) -> None:
    found = NOT_OURS.search(read(file))
    assert found is None, f"{file}: {found[0] if found else ''}"
