"""Ray and Airflow, asked over HTTP, and the clocks of all."""

from __future__ import annotations

import os
from collections.abc import Iterator

from damage_atlas.doctor.findings import Finding
from damage_atlas.doctor.http import Answer, Place, Silent, ask, field, http_address, is_loopback, ray_place
from damage_atlas.doctor.install import fits, needed

_COMPONENTS = ("metadatabase", "scheduler", "dag_processor", "triggerer")
_SKEW_S = 5  # S3 refuses signatures from 900 s on, but logs, schedules and tokens are wrong long before


def check_ray(url: str | None, skews: dict[str, float | None]) -> Iterator[Finding]:
    """Whether Ray answers, takes our token, refuses others, and is a version that we know."""
    place = ray_place(url, os.environ)
    if place is None:
        yield Finding("ray", "skipped", "no Ray given; --ray or AIRFLOW_CONN_RAY_DEFAULT names its dashboard")
        return
    try:
        version = ask(place, "/api/version")
        jobs = ask(place, "/api/jobs/")
        stranger = ask(Place(place.url, "", place.verify, place.ca_file), "/api/jobs/")
    except Silent as error:
        yield Finding("ray", "bad", f"Ray at {place.url} does not answer ({error}).",
                      "Is its head up? Check the address.")  # fmt: skip
        return
    skews["Ray's head"] = _least_skew(version, jobs, stranger)
    if jobs.status in (401, 403):
        how = "refuses our token" if place.token else "wants a token, and we have none"
        yield Finding("ray", "bad", f"Ray at {place.url} {how}.",
                      "Put the cluster's token into RAY_AUTH_TOKEN, or into the connection's password.")  # fmt: skip
        return
    found = field(version, "ray_version")
    if jobs.status != 200 or found is None:
        yield Finding("ray", "bad", f"what answers at {place.url} is not Ray's dashboard (status {jobs.status}).",
                      "Give the address of the head's dashboard, http://HOST:8265.")  # fmt: skip
    elif not fits(found, wanted := needed("ray", "ray")):
        yield Finding("ray", "bad", f"Ray at {place.url} is {found}; {wanted} is needed.", "Install such a version.")
    else:
        yield Finding("ray", "ok", f"Ray {found} at {place.url}{' takes our token' if place.token else ''}")
    if stranger.status == 200 and not is_loopback(place.url):
        yield Finding("ray", "bad", f"Ray at {place.url} takes jobs from anyone who can reach it.",
                      "Start its nodes with RAY_AUTH_MODE=token.")  # fmt: skip


def check_airflow(url: str | None, skews: dict[str, float | None]) -> Iterator[Finding]:
    """Whether Airflow's components are healthy, and whether it is a version that we know."""
    url = url or os.environ.get("AIRFLOW__API__BASE_URL")
    if not url:
        yield Finding("airflow", "skipped", "no Airflow given; --airflow or AIRFLOW__API__BASE_URL names it")
        return
    place = Place(http_address(url, "Airflow"))
    try:
        health = ask(place, "/api/v2/monitor/health")
        version = ask(place, "/api/v2/version")
    except Silent as error:
        yield Finding("airflow", "bad", f"Airflow at {place.url} does not answer ({error}).",
                      "Is the api-server up? Check the address.")  # fmt: skip
        return
    skews["Airflow"] = _least_skew(health, version)
    found = field(version, "version")
    states = {name: field(health, name, "status") for name in _COMPONENTS}
    if found is None or states["metadatabase"] is None:
        yield Finding("airflow", "bad", f"what answers at {place.url} is not Airflow's API (status {health.status}).",
                      "Give the address of its UI.")  # fmt: skip
        return
    if ill := [f"{name} ({status or 'not running'})" for name, status in states.items() if status != "healthy"]:
        yield Finding("airflow", "bad", f"Airflow at {place.url} has unhealthy parts: {', '.join(ill)}.",
                      "Start them; their logs say why they stopped.")  # fmt: skip
    if not fits(found, wanted := needed("airflow", "apache-airflow")):
        yield Finding("airflow", "bad", f"Airflow at {place.url} is {found}; {wanted} is needed.",
                      "Install such a version.")  # fmt: skip
    elif not ill:
        yield Finding("airflow", "ok", f"Airflow {found} at {place.url}: {', '.join(states)} are healthy")


def _least_skew(*answers: Answer) -> float | None:
    """Of several answers: a busy server dates them by a clock that it looks at once a second, or later."""
    return min((answer.skew_s for answer in answers if answer.skew_s is not None), key=abs, default=None)


def check_clock(skews: dict[str, float | None]) -> Iterator[Finding]:
    """Whether our clock is that of the services, by the date of their answers."""
    known = {name: skew for name, skew in skews.items() if skew is not None}
    if not known:
        yield Finding("clock", "skipped", "no service has told its time")
    for name, skew in known.items():
        if abs(skew) > _SKEW_S:
            which = "ahead of" if skew > 0 else "behind"
            yield Finding("clock", "bad", f"{name}'s clock is {abs(skew):.0f} s {which} ours.",
                          "Set both by NTP (chrony, systemd-timesyncd).")  # fmt: skip
        else:
            yield Finding("clock", "ok", f"{name}'s clock is ours, to {_SKEW_S} s")
