"""What a waiting job waits for, in words."""

from __future__ import annotations

import pytest

from airflow_ray_jobs.resources import waiting_for

NODES = [{"CPU": 1.0, "memory": 1e9}, {"CPU": 3.0, "swan": 2.0}]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"GPU": 1}, "1 GPU, cluster has 0"),
        ({"GPU": 0.5, "CPU": 1}, "0.5 GPU, cluster has 0"),
        ({"GPU": 1, "CPU": 8}, "1 GPU, cluster has 0 and 8 CPU, cluster has 4"),
        ({"CPU": 4}, "4 CPU on one node, the largest has 3"),
        ({"CPU": 3, "swan": 1}, "3 CPU, cluster has 4 and 1 swan, cluster has 2, in use"),
        ({}, "its environment, or for a node that takes it"),
    ],
)
def test_words(wanted: dict[str, float], words: str) -> None:
    assert waiting_for(wanted, NODES) == words


def test_a_cluster_without_nodes() -> None:
    assert waiting_for({"CPU": 1}, []) == "1 CPU, cluster has 0"
