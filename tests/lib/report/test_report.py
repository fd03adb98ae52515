"""The report stage on sealed runs of many shapes; what a browser makes of the page is tested in tests/browser."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from damage_atlas.contracts import ASSETS, TRANSITIONS
from damage_atlas.errors import ContractError
from damage_atlas.report import gather, write_report
from damage_atlas.report.changes import Change, describe_changes, tell_history
from damage_atlas.report.gather import gather_facts, gather_points
from damage_atlas.report.page import visible
from damage_atlas.report.palette import look
from damage_atlas.report.sampling import CLUSTER_FLOOR, draw_order
from damage_atlas.report.severity import CodeTable
from damage_atlas.report.write import figure_clusters
from damage_atlas.store import Run
from tests.lib.report.synthetic_run import HOSTILE_ASSET, HOSTILE_FILE, HOSTILE_LABEL, Scene, make_run, read_report

SMALL = Scene(images=90, clusters=5, assets=4, hover_pictures=40)


class _Text(HTMLParser):
    """The words of a page that a reader sees, and its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self._hidden = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._hidden = tag in ("script", "style")
        assert not [name for name, _ in attrs if name.startswith("on") or name == "style"], (tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)


def page_of(run: Run) -> str:
    return run.read("report", "index.html").decode()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = make_run(tmp_path_factory.mktemp("report"), SMALL)
    write_report(made)
    return made


EDGES = {
    "no clusters, all noise": replace(SMALL, clusters=0, images=30),
    "no labels": replace(SMALL, labelled=False),
    "no previous version": replace(SMALL, previous=False),
    "one image": Scene(images=1, clusters=0, assets=0, quarantined=0, duplicates=0, previous=False),
    "no images": Scene(images=0, clusters=0, assets=0, quarantined=3, duplicates=0, previous=False),
    "zero assets": replace(SMALL, assets=0),
    "60 clusters": Scene(images=700, clusters=60, hover_pictures=50),
    "100 quarantined": replace(SMALL, quarantined=100),
    "no hover pictures": replace(SMALL, hover_pictures=0),
    "markup and other alphabets": replace(
        SMALL,
        labels=("crack", HOSTILE_LABEL, "ひび割れ$x$"),
        names={0: HOSTILE_FILE, 1: "a b/'q\" &\n\u202egpj.jpg"},
        asset_names={0: HOSTILE_ASSET},
    ),
}


@pytest.mark.parametrize("name", EDGES)
def test_every_shape_of_run_gets_a_whole_report(name: str, tmp_path: Path) -> None:
    scene = EDGES[name]
    run = make_run(tmp_path, scene)
    artifact = write_report(run)
    figures = {f"figures/{kind}.png" for kind in ("class-map", "cluster-map", "pictures", "heat-maps")}
    assert set(artifact.outputs) == {"index.html", "report.json", "assets.parquet", "transitions.parquet"} | figures
    for figure in figures:
        with Image.open(io.BytesIO(run.read("report", figure))) as image:
            image.load()
    document = read_report(run)
    text = " ".join(_Text(page_of(run)).words)
    assert visible(document["finding"]) in text
    assert len(document["quarantined"]) == document["ledger"]["quarantined"]
    for bad in document["quarantined"]:
        assert visible(bad["file"]) in text
    assert run.read_table("report", "assets.parquet").schema.equals(ASSETS)
    assert run.read_table("report", "transitions.parquet").schema.equals(TRANSITIONS)
    assert sum(map(sum, (course["looks"] for course in document["over_time"]))) == sum(document["looks_of_period"])
    assert artifact.facts["hover_pictures_missing"] == 0
    assert artifact.counts == {"in": document["images"], "out": document["images"], "failed": 0}


def test_what_the_map_and_nuisances_made_of_a_cluster_is_said(run: Run) -> None:
    text = " ".join(" ".join(_Text(page_of(run)).words).split())
    assert text.count("It was drawn anew for this version") == 1 and "cluster.refit asks for <it>" in text
    clusters = read_report(run)["clusters"]
    marked = [c["cluster_id"] for c in clusters if c["explained_by"]]
    assert 0 < len(marked) < len(clusters)
    assert text.count("Goes with the group of photos more than with the damage") == len(marked)
    assert text.count("back on 83% of maps drawn anew") == len(clusters)


def test_names_from_data_never_become_markup(tmp_path: Path) -> None:
    page = {}
    for kind, scene in (("plain", SMALL), ("hostile", EDGES["markup and other alphabets"])):
        scene = replace(scene, labels=scene.labels[:2])
        run = make_run(tmp_path / kind, scene)
        write_report(run)
        page[kind] = _Text(page_of(run))
    assert page["hostile"].tags.count("script") == page["plain"].tags.count("script") == 2
    assert page["hostile"].tags.count("img") == page["plain"].tags.count("img")
    words = " ".join(page["hostile"].words)
    assert HOSTILE_FILE in words and HOSTILE_LABEL in words and visible(HOSTILE_ASSET) in words


def test_map_data_cannot_end_its_script(tmp_path: Path) -> None:
    run = make_run(tmp_path, replace(SMALL, labels=("crack", HOSTILE_LABEL)))
    write_report(run)
    block = re.search(r'<script type="application/json" id="map-data">(.*?)</script>', page_of(run), re.DOTALL)
    assert block is not None and not set("<>&") & set(block[1])
    assert HOSTILE_LABEL in [label["name"] for label in json.loads(block[1])["labels"]]


def test_page_asks_for_nothing_and_runs_only_its_own_script(run: Run) -> None:
    page = page_of(run)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src &#39;none&#39;" in policy[1] and "unsafe" not in policy[1]
    assert re.findall(r"(?:src|href)=[\"'](?!data:|#)([^\"']*)", page) == []


def test_same_run_same_bytes(tmp_path: Path) -> None:
    digests = []
    run = make_run(tmp_path, SMALL)
    for _ in range(2):
        artifact = write_report(run)
        digests.append({name: output.sha256 for name, output in artifact.outputs.items()})
        for item in list(run.store.list(f"{run.key}/report")):
            run.store.delete(item.key)
    assert digests[0] == digests[1]


def test_sealed_report_is_returned_unchanged(run: Run) -> None:
    assert write_report(run) == run.artifact("report")


def test_unsealed_input_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path, replace(SMALL, images=20, clusters=1))
    run.store.delete(f"{run.key}/explain/artifact.json")
    with pytest.raises(ContractError, match="explain is not complete"):
        write_report(run)


def test_vanished_pictures_leave_gaps_and_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path, SMALL)
    for path in list((tmp_path / "images").rglob("*.jpg"))[::2]:
        path.unlink()
    artifact = write_report(run)
    assert artifact.facts["hover_pictures_missing"] > 0
    assert f"{artifact.facts['hover_pictures_missing']} pictures could not be read any more" in page_of(run)


def test_alerts_and_the_queue_are_shown_with_pictures(tmp_path: Path) -> None:
    run = make_run(tmp_path, replace(SMALL, noise_share=0.2))
    write_report(run)
    document, page = read_report(run), page_of(run)
    (alert,) = document["alerts"]
    section = page.partition('<section id="alerts"')[2].partition("</section>")[0]
    assert alert["text"] in section and f"cluster-{alert['cluster_id']}" in section
    assert section.count('<img src="data:image/jpeg') == 1 + len(alert["nearest"])
    noise = run.read_table("cluster", "noise.parquet").to_pylist()
    section = page.partition('<section id="queue"')[2].partition("</section>")[0]
    assert section.count('<img src="data:image/jpeg') == min(len(noise), 50) == len(document["queue"])
    assert section.index("Group 1, 3 images") < section.index("Single images")
    assert document["queue_length"] == len(noise)


def test_what_people_said_of_a_cluster_is_shown_as_text(run: Run) -> None:
    card = page_of(run).partition('<article class="card" id="cluster-1"')[2].partition("</article>")[0]
    words = " ".join(_Text(card).words)
    assert (
        f"Cluster 1: {HOSTILE_LABEL}" in words and "severity 4" in words and "ask <b>Ann</b> (Ann, 2026-02-03)" in words
    )


def test_a_quiet_run_says_so_and_a_gone_picture_is_no_hole(tmp_path: Path) -> None:
    run = make_run(tmp_path, replace(SMALL, previous=False, noise_share=0.1))
    for path in (tmp_path / "images").rglob("*.jpg"):
        path.unlink()
    write_report(run)
    page = page_of(run)
    assert "Nothing could be compared: the first version." in page and "not readable any more" in page


def test_json_counts_agree_with_the_tables(run: Run) -> None:
    document = read_report(run)
    points = run.read_table("cluster", "points.parquet").to_pylist()
    assert document["images"] == len(points)
    assert sum(c["size"] for c in document["clusters"]) + document["noise"] == len(points)
    for row in document["classes"]:
        inside = sum(row["clusters"].values())
        assert inside + row["noise"] == row["images"] == sum(p["label"] == row["label"] for p in points)
    assert [c["status"] for c in document["changes"]] == ["born", "split", "merged", "grown", "shrunk", "died"]
    assert document["quarantined"][0].keys() == {"file", "reason", "meaning", "detail", "stage"}


def test_any_prefix_of_the_drawing_order_is_a_fair_sample() -> None:
    cluster_N = np.repeat([-1, 1, 2, 3], [200, 10_000, 5_000, 12])
    order = draw_order(cluster_N, first=[15_211, 7])
    assert sorted(order.tolist()) == list(range(len(cluster_N)))
    assert set(order[:2].tolist()) == {15_211, 7}
    drawn = cluster_N[order[:3000]]
    assert (drawn == 3).sum() == 12 and (drawn == -1).sum() >= CLUSTER_FLOOR
    assert (drawn == 1).sum() / (drawn == 2).sum() == pytest.approx(2, rel=0.05)


def test_changes_read_as_sentences() -> None:
    def cluster(number: int, status: str, size: int = 40) -> dict[str, object]:
        return {"cluster_id": number, "status": status, "size": size, "new_share": 0.5}

    def event(source: int | None, target: int | None, kind: str) -> dict[str, object]:
        return {"from_cluster_id": source, "to_cluster_id": target, "event": kind, "shared_images": 9, "share": 0.25}

    changes = describe_changes(
        [cluster(1, "grown"), cluster(2, "kept"), cluster(3, "merged"), cluster(4, "split"), cluster(5, "born")],
        [event(3, 3, "grown"), event(7, 3, "merged"), event(1, 4, "split"), event(8, None, "died")],
        {1: 20, 2: 40, 3: 10, 7: 10, 8: 1},
        6,
    )
    assert {c.cluster_id: c.sentence for c in changes} == {
        5: "No cluster of version 6 holds these images. 50% of them were not in the archive before.",
        4: "Split off from cluster 1: 25% of that cluster's images of version 6 are here now.",
        3: "Brings together clusters 3 (25% of its images) and 7 (25% of its images) of version 6.",
        1: "Had 20 images in version 6, has 40 now.",
        8: "Its 1 image of version 6 form no cluster now.",
    }


def test_what_would_not_show_is_shown() -> None:
    assert visible("a\nb\u202e\x00é北 'q'") == r"a\nb\u202e\x00é北 'q'"


def test_looks_stay_and_differ() -> None:
    looks = [look(i) for i in range(1, 61)]
    assert len(set(looks)) == 60
    assert len({one.color for one in looks[:18]}) == 18


def test_the_history_of_a_cluster_is_read_in_the_ledger() -> None:
    def row(version: int, event: str, before: int | None, after: int | None, size: int | None = None) -> dict[str, Any]:
        ids = {"from_cluster_id": before, "to_cluster_id": after}
        return ids | {"version": version, "event": event, "size": size, "evidence": "images"}

    ledger = [
        row(1, "born", None, 4, 30), row(2, "kept", 4, 4, 31), row(2, "split", 4, 9, 12), row(3, "grown", 4, 4, 60),
        row(3, "merged", 9, 4, 60), row(4, "died", 4, None),
    ]  # fmt: skip
    assert tell_history(4, ledger) == [
        "version 1: new, 30 images", "version 2: kept, 31 images", "version 2: 9 split off from it",
        "version 3: grown, 60 images", "version 3: took in 9", "version 4: gone",
    ]  # fmt: skip
    assert tell_history(9, ledger) == ["version 2: split off from 4", "version 3: went into 4"]
    assert tell_history(5, ledger) == []


def test_figures_of_many_clusters_stay_small_and_show_what_changed(tmp_path: Path) -> None:
    run = make_run(tmp_path, Scene(images=900, clusters=60, hover_pictures=30))
    artifact = write_report(run)
    for name in ("figures/pictures.png", "figures/heat-maps.png"):
        assert artifact.outputs[name].size_bytes < 2_000_000
        with Image.open(io.BytesIO(run.read("report", name))) as image:
            assert 24 * 96 < image.height < 26 * 110, "24 rows"
    facts = gather_facts(run, gather_points(run))
    shown = [cluster.cluster_id for cluster in figure_clusters(facts)]
    changed = {change.cluster_id for change in facts.changes if change.status in ("born", "split", "merged", "grown")}
    assert len(shown) == 24 and shown == sorted(shown) and changed <= set(shown)
    largest = sorted(facts.clusters, key=lambda c: -c.size)[:10]
    assert {c.cluster_id for c in largest} <= set(shown)


def test_page_lists_progressions_first_and_says_where(tmp_path: Path) -> None:
    run = make_run(tmp_path, replace(SMALL, images=200, places=9))
    write_report(run)
    rows = read_report(run)["transitions"]
    assert rows == run.read_table("report", "transitions.parquet").to_pylist()
    grave = [row for row in rows if row["kind"] == "progression"]
    assert grave and all(row["to_severity"] > row["from_severity"] for row in grave)
    assert rows[: len(grave)] == grave and {row["matched_by"] for row in rows} == {"place"}
    shown = re.findall(r'<tr data-move="(\w+)">', page_of(run))
    assert shown == [row["kind"] for row in rows if row["kind"] != "steady"]
    text = " ".join(_Text(page_of(run)).words)
    assert f"{grave[0]['looks']:.0f} of {grave[0]['of_looks']} places" in text
    assert f"{grave[0]['positions_m'][0]:g}" in text


def test_a_code_table_decides_the_order_and_its_idle_entries_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path, SMALL)
    codes = {"crack": 0.0, "corrosion": 0.0, "spalling": 5.0, "spaling": 4.0, "cluster 1": 2.0}
    settings = run.spec.settings.model_copy(
        update={"report": run.spec.settings.report.model_copy(update={"severities": codes})}
    )
    graded = replace(run, spec=run.spec.model_copy(update={"settings": settings}))
    write_report(graded)
    document = read_report(graded)
    assert document["unused_grades"] == ["spaling"] and "spaling" in page_of(graded)
    grades = {grade["label"]: (grade["grade"], grade["source"]) for grade in document["grades"]}
    assert grades == {
        "crack": (0, "table"),
        "corrosion": (0, "table"),
        "spalling": (5, "table"),
        "sound": (0, "name"),
        "cluster 1": (2, "table"),
    }, "what somebody noted of cluster 1 comes after the table"
    of_spalling = {
        c["cluster_id"] for c in document["clusters"] if c["top_label"] == "spalling" or c["status"] == "born"
    }
    assert document["assets"] and all(set(asset["clusters"]) <= of_spalling | {1} for asset in document["assets"])
    assert any(1 in asset["clusters"] for asset in document["assets"])


def test_a_severity_that_somebody_noted_decides_without_a_table(run: Run) -> None:
    document = read_report(run)
    noted = {c["cluster_id"]: c["severity"] for c in document["clusters"] if c["severity"]}
    assert noted == {1: "4"}
    assert {"label": "cluster 1", "grade": 4.0, "source": "people"} in document["grades"]
    assert "Noted by somebody" in page_of(run)
    codes = CodeTable({"s3": 3.5})
    said = [codes.of_remark(text) for text in ("S3", "4", "0", "6", "-1", "nan", "bad", None)]
    assert said == [3.5, 4.0, 0.0, None, None, None, None, None]


@pytest.mark.parametrize(("clusters", "label", "listed"), [(6, "spalling", True), (7, "sound", False)])
def test_a_new_cluster_is_worth_a_visit_unless_it_is_plainly_sound(
    clusters: int, label: str, listed: bool, tmp_path: Path
) -> None:
    run = make_run(tmp_path, replace(SMALL, images=200, clusters=clusters))
    write_report(run)
    document = read_report(run)
    (new,) = (c for c in document["clusters"] if c["status"] == "born")
    assert (new["cluster_id"], new["top_label"]) == (clusters, label)
    reasons = [reason for asset in document["assets"] for reason in asset["reasons"]]
    assert any(f"in cluster {clusters} " in reason and "new in this version" in reason for reason in reasons) == listed


def test_the_first_sentence_says_what_cannot_be_told_and_what_is_gone() -> None:
    def finding(*changes: tuple[int, str]) -> str:
        told = [Change(cluster, status, "") for cluster, status in changes]
        return gather._finding(100, 0, [SimpleNamespace(cluster_id=1, top_label=None, size=100)], 0, told, 4)  # type: ignore[list-item]

    assert finding().endswith("Nothing is new since version 4.")
    assert finding((7, "unknown"), (7, "unknown")).endswith("1 cluster cannot be followed.")
    assert finding((7, "died"), (8, "died"), (1, "shrunk")).endswith("1 cluster has shrunk, 2 clusters are gone.")
