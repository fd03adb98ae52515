"""The policies of `infra/store/`: they allow what each role really asks of the store, and no statement is idle.

Judged here as Amazon describes it (an allow, and no deny); the server of the tests knows no policies.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import Any

import pytest

from tests.architecture.repository import files, read
from tests.security.conftest import Line

BUCKET = "arn:aws:s3:::damage-atlas"
ACTIONS = {
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
    "ListObjectsV2": "s3:ListBucket",
}
ROLES = ("readers", "airflow", "workers", "maintainers")
Request = tuple[str, str, bool]  # action, resource, only if absent


def statements(name: str) -> list[dict[str, Any]]:
    document: dict[str, Any] = json.loads(read(f"infra/store/{name}.json"))
    assert document["Version"] == "2012-10-17"
    return list(document["Statement"])


def asked(line: Line, role: str) -> set[Request]:
    return {
        (
            ACTIONS[operation],
            BUCKET if operation.startswith("List") else f"{BUCKET}/{key.removeprefix('atlas/')}",
            alone,
        )
        for who, operation, key, alone in line.heard["requests"]
        if who == role
    }


def concerns(statement: dict[str, Any], request: Request) -> bool:
    action, resource, if_absent = request
    is_named = any(fnmatchcase(resource, each) for each in statement.get("Resource", statement.get("NotResource")))
    conditions = statement.get("Condition", {})
    assert conditions in ({}, {"Null": {"s3:if-none-match": "true"}})
    return action in statement["Action"] and is_named == ("Resource" in statement) and not (conditions and if_absent)


def allowed(name: str, request: Request) -> bool:
    mine = [s["Effect"] for s in (*statements(name), *statements("bucket")) if concerns(s, request)]
    return "Allow" in mine and "Deny" not in mine


def test_there_is_one_for_each_role() -> None:
    found = {file for file in files() if file.startswith("infra/store/")}
    assert found == {f"infra/store/{name}.json" for name in (*ROLES, "bucket")}


@pytest.mark.parametrize("role", ROLES)
def test_what_a_role_does_is_allowed(line: Line, role: str) -> None:
    requests = asked(line, role)
    assert len(requests) > 5
    assert [request for request in requests if not allowed(role, request)] == []


@pytest.mark.parametrize("role", ROLES)
def test_no_permission_is_idle(line: Line, role: str) -> None:
    requests = asked(line, role)
    for statement in statements(role):
        for action in set(statement["Action"]) - {"s3:AbortMultipartUpload"}:  # Ray Train's, by pyarrow
            for resource in statement["Resource"]:
                one = statement | {"Action": [action], "Resource": [resource]}
                assert any(concerns(one, request) for request in requests), (role, action, resource)


@pytest.mark.parametrize(
    ("role", "request_"),
    [
        ("readers", ("s3:PutObject", f"{BUCKET}/archives/a/versions/00000001.json", True)),
        ("readers", ("s3:DeleteObject", f"{BUCKET}/archives/a/versions/00000001.json", False)),
        ("airflow", ("s3:PutObject", f"{BUCKET}/archives/a/versions/00000001.json", True)),
        ("airflow", ("s3:DeleteObject", f"{BUCKET}/archives/a/versions/00000001.json", False)),
        ("workers", ("s3:PutObject", f"{BUCKET}/archives/a/versions/00000001.json", False)),
        ("workers", ("s3:DeleteObject", f"{BUCKET}/archives/a/versions/00000001.json", False)),
        ("workers", ("s3:DeleteObject", f"{BUCKET}/models/m/v/model.safetensors", False)),
        ("maintainers", ("s3:DeleteObject", f"{BUCKET}/models/m/v/model.safetensors", False)),
    ],
)  # fmt: skip
def test_what_a_role_does_not_is_not(role: str, request_: Request) -> None:
    assert not allowed(role, request_)
