"""Who is who: matches the previous version's clusters with this run's, and writes down what became of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pyarrow as pa

from damage_atlas.cluster.exemplars import exemplar_table, find_again, find_dormant, still_dormant
from damage_atlas.cluster.passports import Matching, match_clusters, trace_flows, untold_clusters
from damage_atlas.cluster.tables import lineage_table
from damage_atlas.contracts import CLUSTER_LEDGER, FLOWS, Remarks
from damage_atlas.neighbours import Floats, Ints
from damage_atlas.store import Run, read_version
from damage_atlas.store.remarks import read_remarks
from damage_atlas.store.runs import Stage
from damage_atlas.store.versions import run_model


def identify_clusters(
    run: Run, previous: Run | None, ids: Sequence[str], vectors_ND: Floats, labels_N: Ints
) -> Matching:
    """The ids of this run's clusters.

    Args:
        previous: the version that the run builds on; None for the first.
        ids: the images, in the order of ``vectors_ND`` and ``labels_N``.
        labels_N: cluster of each image, -1 for noise.
    """
    labels = dict(zip(ids, labels_N.tolist(), strict=True))
    if previous is None or run.spec.previous_version is None:
        return match_clusters(labels, None, next_id=1)
    old = _clusters_of(previous)
    exemplars = find_again(run, previous, untold_clusters(labels, old), ids, vectors_ND, labels_N)
    next_id = read_version(run.store, run.spec.archive, run.spec.previous_version).next_cluster_id
    found = match_clusters(labels, old, next_id, exemplars)
    nobodys = {label for label, cluster in found.ids.items() if found.statuses[cluster] in ("born", "unknown")}
    alive = {cluster for cluster in old.values() if cluster is not None}
    dormant = find_dormant(still_dormant(previous, alive, (), _model_of(run)), vectors_ND, labels_N, nobodys)
    return match_clusters(labels, old, next_id, exemplars, dormant) if dormant else found


def write_identity(
    stage: Stage, previous: Run | None, matching: Matching, ids: Sequence[str], vectors_ND: Floats, labels_N: Ints,
    clusters: pa.Table,
) -> None:  # fmt: skip
    """Write lineage, ledger, flows, exemplars, and the remarks that there are.

    Args:
        clusters: the table that is written as clusters.parquet.
    """
    run = stage.run
    lineage = lineage_table(matching)
    stage.write_table("lineage.parquet", lineage)
    stage.write_table("ledger.parquet", _ledger_table(run, previous, lineage, clusters))
    flows = trace_flows(
        dict(zip(ids, labels_N.tolist(), strict=True)),
        None if previous is None else _clusters_of(previous),
        matching.ids,
    )
    names = {"from_id": "from_cluster_id", "to_id": "to_cluster_id"}
    rows = [{names.get(k, k): v for k, v in dataclasses.asdict(flow).items()} for flow in flows]
    stage.write_table("flows.parquet", pa.Table.from_pylist(rows, FLOWS))
    # A copy that is sealed: the report then says the same however often it is made.
    remarks = Remarks(remarks=read_remarks(run.store, run.spec.archive))
    stage.write("remarks.json", remarks.model_dump_json(indent=1).encode())
    model, cluster_ids = _model_of(run), [matching.ids.get(label) for label in labels_N.tolist()]
    merged = {event.from_id for event in matching.events if event.event == "merged" and event.from_id is not None}
    dormant = still_dormant(previous, set(matching.ids.values()), merged, model)
    own = exemplar_table(model, ids, vectors_ND, cluster_ids)
    stage.write_table("exemplars.parquet", pa.concat_tables([own, dormant]))


def _model_of(run: Run) -> str:
    card = run_model(run)
    return f"{card.model}@{card.version}"


def _ledger_table(run: Run, previous: Run | None, lineage: pa.Table, clusters: pa.Table) -> pa.Table:
    sizes = dict(zip(clusters["cluster_id"].to_pylist(), clusters["size"].to_pylist(), strict=True))
    rows = [
        row
        | {
            "version": (run.spec.previous_version or 0) + 1,
            "run_id": run.spec.run_id,
            "delivery": run.spec.delivery,
            "size": sizes.get(row["to_cluster_id"]),
        }
        for row in lineage.to_pylist()
    ]
    table = pa.Table.from_pylist(rows, CLUSTER_LEDGER)
    # A version older than the ledger has none; it then begins here.
    if previous is not None and "ledger.parquet" in previous.artifact("cluster").outputs:
        table = pa.concat_tables([previous.read_table("cluster", "ledger.parquet"), table])
    return table


def _clusters_of(previous: Run) -> dict[str, int | None]:
    table = previous.read_table("cluster", "points.parquet", ["image_id", "cluster_id"])
    return dict(zip(table["image_id"].to_pylist(), table["cluster_id"].to_pylist(), strict=True))
