from __future__ import annotations

import pytest

from damage_atlas.errors import SpecError
from damage_atlas.spec import ArchiveSpec, RunSpec, Settings, dump_yaml, parse_document, with_overrides


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {temprature: 0.5}", "train.temprature is not a setting. Did you mean train.temperature?"),
        ("clustr: {}", "clustr is not a setting. Did you mean cluster?"),
        ("train: {temperature: -1}", "train.temperature: Input should be greater than 0"),
        ("train: {batch_size: 5}", r"train: batch_size \(5\) must be a multiple of shards"),
        ("train: {hard_classes: true}", "set sampler to tuples, and n below them"),
        ("train: {hard_classes: true, sampler: tuples}", "set sampler to tuples, and n below them"),
        ("train: {loss: supcon, m: 3}", "m and n have no say in supcon"),
        ("train: {loss: supcon, n: 3}", "m and n have no say in supcon"),
        ("train: {loss: n_pair, m: 2}", "leave m out"),
        ("train: {m: 1}", "train.m: Input should be greater than or equal to 2"),
        ("train: {network: custom}", "network: custom and module, package.module:Class, go together"),
        ("train: {module: 'a:B'}", "network: custom and module, package.module:Class, go together"),
        ("train: {module_weights: a.safetensors}", "need a module"),
        ("train: {network: custom, module: torch}", "train.module: String should match pattern"),
        ("cluster: {eps: 0}", "cluster.eps: eps must be above 0"),
        ("- a", "expected a mapping"),
        ("a: [", "not valid YAML"),
        ("catalog: {tile_overlap: 300}", "tile_overlap must be smaller"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_document(Settings, text, "here.yaml")


def test_documents_survive_a_round_trip() -> None:
    spec = RunSpec(run_id="r", kind="run", archive="a", images="/i", model="m")
    assert parse_document(RunSpec, dump_yaml(spec), "run.yaml") == spec


def test_overrides() -> None:
    changed = with_overrides(Settings(), ["train.iterations=7", "cluster.eps=2.5", "catalog.groups=null"])
    assert (changed.train.iterations, changed.cluster.eps) == (7, 2.5)
    with pytest.raises(SpecError, match="expected key=value"):
        with_overrides(Settings(), ["train.iterations"])
    with pytest.raises(SpecError, match="Did you mean train.iterations"):
        with_overrides(Settings(), ["train.iteration=5"])


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "é", "a..b", "-a", "x" * 129])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(SpecError, match="archive"):
        parse_document(ArchiveSpec, f"archive: {name!r}\nimages: /i\nmodel: m", "a.yaml")
