"""One word a stage, the same word everywhere; archive files; names that other people import."""

from __future__ import annotations

import inspect
import re

import pytest

from damage_atlas.cli import app
from damage_atlas.contracts import STAGES, STAGES_OF_KIND
from damage_atlas.spec import ArchiveSpec, Settings, changed_keys, parse_document
from tests.architecture.repository import files, read

ARCHIVE_FILES = [file for file in files() if re.fullmatch(r"infra/archives/[^/]+\.yaml", file)]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_a_room_everywhere(stage: str) -> None:
    missing = {
        "a package": f"lib/damage_atlas/{stage}/__init__.py" not in files(),
        "a worker": f"workers/{stage}.py" not in files(),
        "a command": stage not in {command.name for command in app.registered_commands},
        "a text for Airflow's UI": f'"{stage}": "' not in read("dags/atlas_flow.py"),
        "a line in the glossary": not re.search(rf"^\*\*{stage}\*\* ", read("docs/glossary.md"), re.MULTILINE),
        "a step in the tour": f"lib/damage_atlas/{stage}/" not in read("docs/tour.md"),
    }
    assert [what for what, is_missing in missing.items() if is_missing] == []


def test_settings_have_a_section_for_each_stage_that_has_settings() -> None:
    assert list(Settings.model_fields) == [stage for stage in STAGES if stage != "publish"]


def test_pipeline_knows_every_stage() -> None:
    from damage_atlas.pipeline import STAGE_FUNCTIONS

    assert tuple(STAGE_FUNCTIONS) == STAGES == STAGES_OF_KIND["run"]
    for name, function in STAGE_FUNCTIONS.items():
        assert function.__module__.startswith(f"damage_atlas.{name}"), name


@pytest.mark.parametrize("file", ARCHIVE_FILES)
def test_archive_file_is_valid(file: str) -> None:
    spec = parse_document(ArchiveSpec, read(file), file)
    assert file == f"infra/archives/{spec.archive}.yaml", "the file carries the archive's name"


def test_demo_archive_is_the_one_of_the_library() -> None:
    from damage_atlas.demo.runs import DEMO_ARCHIVE

    file = "infra/archives/demo.yaml"
    assert changed_keys(parse_document(ArchiveSpec, read(file), file), DEMO_ARCHIVE) == []


def test_names_that_other_people_import_stay() -> None:
    import damage_atlas
    from damage_atlas.explain.gradcam import explain_batch
    from damage_atlas.network import DamageNet
    from damage_atlas.train.losses import MNPairLoss

    def defaults(function: object) -> dict[str, object]:
        parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
        return {p.name: None if p.default is p.empty else p.default for p in parameters}

    assert list(defaults(DamageNet).items())[:2] == [("input_size", 160), ("embedding_size", 16)]
    wanted = [("temperature", 0.3), ("positive_weight", 0.15), ("form", "mn_pair")]
    assert list(defaults(MNPairLoss).items())[:3] == wanted
    assert list(defaults(explain_batch))[:2] == ["network", "images_BCHW"]
    assert list(defaults(damage_atlas.search).items())[:4] == [
        ("store", None), ("archive", None), ("image", None), ("k", 10),
    ]  # fmt: skip
