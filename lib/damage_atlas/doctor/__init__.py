"""`damage-atlas doctor`: is everything there that a run needs, and what is to be mended?

Looks at package metadata and asks over HTTP; imports neither Ray nor Airflow nor torch, so that it answers in
seconds, in the thin image as well as in the fat one. The only thing it writes is an object of its own below
``checks/`` in the store, which it deletes again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from damage_atlas.doctor.findings import Finding
from damage_atlas.doctor.install import check_gpu, check_install
from damage_atlas.doctor.services import check_airflow, check_clock, check_ray
from damage_atlas.doctor.store import check_store
from damage_atlas.errors import AtlasError

__all__ = ["Finding", "examine"]


def examine(store: str | None = None, ray: str | None = None, airflow: str | None = None) -> list[Finding]:
    """Every check, in the order in which things build on each other.

    Args:
        store: the store's root; None skips it.
        ray: address of Ray's dashboard; by default that of the environment (``RAY_API_SERVER_ADDRESS``,
            ``AIRFLOW_CONN_RAY_DEFAULT``), with its token.
        airflow: address of Airflow's API; by default ``AIRFLOW__API__BASE_URL``.
    """
    skews: dict[str, float | None] = {}
    parts: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("install", check_install),
        ("gpu", check_gpu),
        ("store", lambda: check_store(store, skews)),
        ("ray", lambda: check_ray(ray, skews)),
        ("airflow", lambda: check_airflow(airflow, skews)),
        ("clock", lambda: check_clock(skews)),
    ]
    findings: list[Finding] = []
    for name, check in parts:
        try:
            findings += check()
        except AtlasError as error:
            findings.append(Finding(name, "bad", error.message, "See the message."))
    return findings
