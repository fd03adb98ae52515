"""What a job's log may say, what its ids look like, which lines of a growing log are new."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from airflow_ray_jobs.client import JobInfo
from airflow_ray_jobs.errors import InvalidConnection, ProtocolError
from airflow_ray_jobs.get_provider_info import get_provider_info
from airflow_ray_jobs.hook import RayHook, address_of
from airflow_ray_jobs.log_follower import MAX_LINES_AT_ONCE, LogFollower
from airflow_ray_jobs.outcome import Outcome, outcome_of
from airflow_ray_jobs.protocol import attempt_id, last_lines, read_failure, read_result
from airflow_ray_jobs.status import Stand


def job(status: str, message: str = "") -> JobInfo:
    return JobInfo("a-1", status, message, None, {})


def test_the_last_result_line_counts() -> None:
    assert read_result('x\nRAY_JOB_RESULT {"n": 1}\nRAY_JOB_RESULT {"n": 2}\n') == {"n": 2}
    assert read_result("nothing\n") is None
    assert read_result('(worker pid=1) RAY_JOB_RESULT {"n": 1}\n') is None


@pytest.mark.parametrize("text", ["{", "[1]", '"text"', json.dumps({"rows": "x" * 20_000})])
def test_an_unusable_result_is_an_error_that_no_retry_helps(text: str) -> None:
    with pytest.raises(ProtocolError):
        read_result(f"RAY_JOB_RESULT {text}\n")
    outcome = outcome_of(job("SUCCEEDED"), Stand.OWN, "a-1", 1, f"RAY_JOB_RESULT {text}\n")
    assert (outcome.step, outcome.retryable) == ("fail", False)
    assert "a-1 succeeded, but" in outcome.message


def test_failure_line() -> None:
    failure = read_failure('RAY_JOB_FAILURE {"retryable": false, "message": "no images"}\n')
    assert failure is not None
    assert (failure.message, failure.retryable) == ("no images", False)
    assert read_failure('RAY_JOB_FAILURE {"message": "busy"}\n').retryable  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["{", "[1]", "{}", "null", "3"])
def test_an_unreadable_failure_line_leaves_the_end_of_the_log(text: str) -> None:
    assert read_failure(f"RAY_JOB_FAILURE {text}\n") is None
    outcome = outcome_of(job("FAILED", "exit code 1"), Stand.OWN, "a-1", 1, f"ValueError: 7\nRAY_JOB_FAILURE {text}\n")
    assert outcome.retryable
    assert "exit code 1" in outcome.message
    assert "ValueError: 7" in outcome.message


def test_a_failure_line_does_not_spoil_a_success() -> None:
    log = 'RAY_JOB_FAILURE {"retryable": false, "message": "first"}\n'
    assert outcome_of(job("SUCCEEDED"), Stand.OWN, "a-1", 1, log).step == "take"


def test_a_lost_job_is_a_failure_that_a_retry_may_help() -> None:
    outcome = outcome_of(None, Stand.OWN, "a-1", 1, "")
    assert (outcome.step, outcome.retryable) == ("fail", True)
    assert "lost" in outcome.message


def test_outcome_survives_the_trigger_event() -> None:
    outcome = Outcome("a-2", 2, "take", {"uri": "s3://b/é"})
    assert Outcome.read(json.loads(json.dumps(outcome.payload()))) == outcome


def test_last_lines_show_progress_bars_once() -> None:
    assert last_lines("a\n 10%\r 20%\r100%\n\nRAY_JOB_FAILURE {}\nb\n", 2) == "100%\nb"


def test_ids() -> None:
    assert attempt_id("run_7-embed", 2) == "run_7-embed-2"
    plus, minus = attempt_id("r__2026-01-01T00:00:00+00:00", 1), attempt_id("r__2026-01-01T00:00:00-00:00", 1)
    assert plus != minus
    assert set(plus) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert len(attempt_id("x" * 1000, 1)) < 200
    assert attempt_id("x" * 1000, 1) != attempt_id("x" * 1001, 1)
    assert attempt_id("../../etc", 1)[0] not in "./"


def test_follower_gives_every_line_once() -> None:
    log = "one\ntwo\n\n 5%\r50%\nthree"
    for cut in range(len(log) + 1):
        follower = LogFollower()
        lines = [*follower.new_lines(log[:cut], False), *follower.new_lines(log, False), *follower.new_lines(log, True)]
        assert lines == ["one", "two", "50%", "three"], cut


def test_follower_counts_what_it_leaves_out() -> None:
    log = "".join(f"{number}\n" for number in range(MAX_LINES_AT_ONCE + 5))
    lines = list(LogFollower().new_lines(log, False))
    assert lines[0].startswith("[5 lines are left out")
    assert lines[1:] == log.split()[5:]


def test_provider_info_fits_airflows_schema() -> None:
    from pathlib import Path

    import airflow
    import jsonschema

    schema = json.loads((Path(airflow.__path__[0]) / "provider_info.schema.json").read_text())
    info = get_provider_info()
    jsonschema.validate(info, schema)
    assert [decorator["name"] for decorator in info["task-decorators"]] == ["ray_job"]


def test_the_connection_form_shows_the_token_and_tls() -> None:
    """What Airflow's own page asks for. Airflow 3.0 builds it from the hook, where wtforms is installed."""
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService

    form = next(each for each in HookMetaService.hook_meta_data() if each.connection_type == "ray")
    assert form.hook_name == "Ray"
    assert form.standard_fields is not None
    assert form.standard_fields.password.title == "Token"
    assert form.standard_fields.url_schema.title == "Scheme"
    assert form.extra_fields is not None
    assert {name: field["schema"]["title"] for name, field in form.extra_fields.items()} == {
        "verify": "Verify certificate",
        "ca_file": "CA file",
    }
    assert form.extra_fields["verify"]["value"] is True
    assert RayHook.get_ui_field_behaviour()["hidden_fields"] == ["login", "extra"]


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        ({"host": "ray-head", "port": 8265}, "http://ray-head:8265"),
        ({"host": "ray-head"}, "http://ray-head:8265"),
        ({"host": "ray-head", "schema": "https", "port": 443}, "https://ray-head:443"),
        ({"host": "https://ray.example/", "port": 443}, "https://ray.example:443"),
        ({"host": "http://ray-head:9000"}, "http://ray-head:9000"),
        ({"host": "http://ray-head:9000", "port": 9000}, "http://ray-head:9000"),
        ({"host": "ray-head", "schema": "HTTPS"}, "https://ray-head:8265"),
        ({"host": "HTTPS://ray-head", "port": 443}, "https://ray-head:443"),
        ({"host": "http://ray-head", "schema": "https"}, "https://ray-head:8265"),
        ({"host": "https://ray.example/ray/", "port": 443}, "https://ray.example:443/ray"),
        ({"host": "::1"}, "http://[::1]:8265"),
        ({"host": "[::1]"}, "http://[::1]:8265"),
        ({"host": "[::1]:9000", "schema": "https"}, "https://[::1]:9000"),
    ],
)
def test_address_of_a_connection(fields: dict[str, object], url: str) -> None:
    from airflow.sdk import Connection

    address = address_of(Connection(conn_id="ray_default", conn_type="ray", password="t0ken", **fields))  # type: ignore[arg-type]
    assert address.url == url
    assert "t0ken" not in repr(address)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"host": "ray-head", "schema": "ftp"}, "http or https"),
        ({"host": "ray://ray-head"}, "http or https"),
        ({"host": "ray head:x"}, "no URL|http or https"),
        ({"host": "https://canary:t0ken@ray-head"}, "names a user"),
        ({"host": "ray-head", "password": "cana\nry"}, "no header can carry"),
        ({"host": "ray-head", "password": "canary\N{EN DASH}"}, "no header can carry"),
    ],
)
def test_connections_that_cannot_be_used_say_why_without_the_token(fields: dict[str, object], message: str) -> None:
    from airflow.sdk import Connection

    with pytest.raises(InvalidConnection, match=message) as refused:
        address_of(Connection(conn_id="ray_default", conn_type="ray", **{"password": "canary", **fields}))  # type: ignore[arg-type]
    assert "canary" not in str(refused.value) and "t0ken" not in str(refused.value)


def test_the_line_break_after_a_token_is_left_out() -> None:
    from airflow.sdk import Connection

    address = address_of(Connection(conn_id="r", conn_type="ray", host="ray-head", password=" canary\n"))
    assert address.token == "canary"


@pytest.mark.parametrize("host", ["ray-head", "https://ray.example", "10.0.0.7", "[fd00::7]", "127.0.0.1.example"])
def test_without_a_token_ray_must_be_on_this_machine(host: str) -> None:
    from airflow.sdk import Connection

    with pytest.raises(InvalidConnection, match="no token.*RAY_AUTH_MODE=token"):
        address_of(Connection(conn_id="ray_default", conn_type="ray", host=host))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "http://127.1.2.3", "[::1]", "::1"])
def test_on_this_machine_a_cluster_may_be_open(host: str) -> None:
    from airflow.sdk import Connection

    assert address_of(Connection(conn_id="ray_default", conn_type="ray", host=host, port=8265)).token == ""


@pytest.mark.parametrize(
    ("extra", "verify", "ca_file"),
    [
        ("", True, ""),
        ('{"verify": null, "ca_file": null}', True, ""),
        ('{"verify": false}', False, ""),
        ('{"verify": "false"}', False, ""),
        ('{"verify": true, "ca_file": "/etc/ray-ca.pem"}', True, "/etc/ray-ca.pem"),
    ],
)
def test_tls_of_a_connection(extra: str, verify: bool, ca_file: str) -> None:
    from airflow.sdk import Connection

    connection = Connection(conn_id="r", conn_type="ray", host="h", schema="https", password="t", extra=extra)
    address = address_of(connection)
    assert (address.verify, address.ca_file) == (verify, ca_file)


def test_the_package_loads_neither_ray_nor_torch() -> None:
    check = "import sys, airflow_ray_jobs; print({'ray', 'torch', 'damage_atlas'} & set(sys.modules) or 'thin')"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split()[-1] == "thin"
