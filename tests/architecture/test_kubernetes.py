"""The files of `infra/kubernetes/` and docker-compose.yml say the same; pods have few rights; few may talk to Ray."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.architecture.repository import ROOT, files, read

FOLDER = "infra/kubernetes"
# Yours: where the store is differs from place to place.
PLACES = {"DAMAGE_ATLAS_STORE", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AIRFLOW__API__BASE_URL"}
STORE_KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}  # in the secrets store-*
# What Airflow's chart sets by itself, from the secret that this value names, under this key.
OF_THE_CHART = {
    "AIRFLOW__CORE__FERNET_KEY": ("fernetKeySecretName", "fernet-key"),
    "AIRFLOW__API__SECRET_KEY": ("apiSecretKeySecretName", "api-secret-key"),
    "AIRFLOW__API_AUTH__JWT_SECRET": ("jwtSecretName", "jwt-secret"),
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": ("metadataSecretName", "connection"),
}


@cache
def objects() -> dict[tuple[str, str], dict[str, Any]]:
    """By kind and name."""
    texts = [read(f"{FOLDER}/{name}.yaml") for name in ("atlas", "network", "raycluster")]
    found = [each for text in texts for each in yaml.safe_load_all(text)]
    by_name = {(each["kind"], each["metadata"]["name"]): each for each in found}
    assert len(by_name) == len(found)
    return by_name


@cache
def values() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(read(f"{FOLDER}/airflow-values.yaml"))
    return loaded


@cache
def service(name: str) -> dict[str, Any]:
    """A service of the compose file."""
    found: dict[str, Any] = yaml.safe_load(read("docker-compose.yml"))["services"][name]
    return found


def default(value: Any) -> str:
    """What Compose makes of a value when nobody sets the variable in it."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value))


def ray_groups() -> dict[str, dict[str, Any]]:
    spec = objects()["RayCluster", "ray"]["spec"]
    return {"head": spec["headGroupSpec"]} | {group["groupName"]: group for group in spec["workerGroupSpecs"]}


def pods() -> dict[str, dict[str, Any]]:
    ray = {f"ray {name}": group["template"]["spec"] for name, group in ray_groups().items()}
    return ray | {"atlas-metrics": objects()["Deployment", "atlas-metrics"]["spec"]["template"]["spec"]}


def environment(container: dict[str, Any]) -> dict[str, Any]:
    """Plain values; None for what a secret holds."""
    found: dict[str, Any] = {}
    for source in container["envFrom"]:
        if "configMapRef" in source:
            found |= objects()["ConfigMap", source["configMapRef"]["name"]]["data"]
        else:
            found |= dict.fromkeys(STORE_KEYS)
    return found | {each["name"]: each.get("value") for each in container["env"]}


def disagreements(ours: dict[str, Any], compose: dict[str, Any]) -> set[str]:
    """Names that only one of the two has, or that have two values, but for places and secrets."""
    both = ours.keys() & compose.keys() - PLACES
    differ = {name for name in both if ours[name] is not None and ours[name] != default(compose[name])}
    return ours.keys() ^ compose.keys() | differ


@pytest.mark.parametrize("group", ["head", "workers", "gpu-workers"])
def test_ray_has_the_environment_of_compose(group: str) -> None:
    container = ray_groups()[group]["template"]["spec"]["containers"][0]
    assert disagreements(environment(container), service("ray-head")["environment"]) == {"HOME"}
    assert environment(container)["RAY_AUTH_MODE"] == "token"


def test_figures_have_the_environment_of_compose() -> None:
    container = pods()["atlas-metrics"]["containers"][0]
    assert disagreements(environment(container), service("atlas-metrics")["environment"]) == {"HOME"}
    assert container["command"] == service("atlas-metrics")["command"]


def test_airflow_has_the_environment_of_compose() -> None:
    ours = objects()["ConfigMap", "store"]["data"] | dict.fromkeys(STORE_KEYS)
    assert yaml.safe_load(values()["extraEnvFrom"]) == [
        {"configMapRef": {"name": "store"}}, {"secretRef": {"name": "store-airflow"}},
    ]  # fmt: skip
    ours |= {each["name"]: each["value"] for each in values()["env"]}
    ours |= {each["envName"]: None for each in values()["secret"]}
    ours |= {each["name"]: None for each in values()["apiServer"]["env"]}
    named = values() | values()["data"]
    ours |= {name: None for name, (value, _) in OF_THE_CHART.items() if named.get(value) == "airflow"}
    ours["AIRFLOW__CORE__EXECUTOR"] = values()["executor"]
    compose = service("airflow-init")["environment"]
    without_figures = {name: value for name, value in compose.items() if "__METRICS__" not in name}
    assert disagreements(ours, without_figures) == set()


@pytest.mark.parametrize("group", ["head", "workers", "gpu-workers"])
def test_ray_starts_as_in_compose(group: str) -> None:
    command = service("ray-head" if group == "head" else "ray-worker")["command"]
    options = dict(default(each).removeprefix("--").split("=") for each in command if "=" in each)
    of_kuberay = {"dashboard-host", "address"}
    ours = ray_groups()[group]["rayStartParams"]
    if group == "gpu-workers":
        assert ours.pop("num-gpus") == "1" and ours.pop("num-cpus") and options.pop("num-cpus")
    assert ours == {name: value for name, value in options.items() if name not in of_kuberay}


@pytest.mark.parametrize("group", ["head", "workers", "gpu-workers"])
def test_shared_memory_is_that_of_compose(group: str) -> None:
    pod = ray_groups()[group]["template"]["spec"]
    name = next(each["name"] for each in pod["containers"][0]["volumeMounts"] if each["mountPath"] == "/dev/shm")
    volume = next(each["emptyDir"] for each in pod["volumes"] if each["name"] == name)
    assert volume == {"medium": "Memory", "sizeLimit": service("ray-head")["shm_size"].replace("gb", "Gi")}


def test_images_are_those_of_compose_in_versions_of_the_lock() -> None:
    version = re.search(r'^version = "(.+)"', read("pyproject.toml"), re.MULTILINE)
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", read("requirements.lock"), re.MULTILINE))
    assert version
    ray, gpu, airflow = (
        service(name)["image"].partition(":")[0] for name in ("ray-head", "ray-gpu-worker", "airflow-init")
    )
    images = {name: pod["containers"][0]["image"].rpartition("/")[2] for name, pod in pods().items()}
    assert images.pop("ray gpu-workers") == f"{gpu}:{version[1]}"
    assert set(images.values()) == {f"{ray}:{version[1]}"}
    image = values()["images"]["airflow"]
    assert (image["repository"].rpartition("/")[2], image["tag"]) == (airflow, version[1])
    assert f"{airflow}:{version[1]}" in read("infra/images/dags.Dockerfile")
    assert objects()["RayCluster", "ray"]["spec"]["rayVersion"] == locked["ray"]
    assert values()["airflowVersion"] == locked["apache-airflow"]


def test_everybody_is_the_user_of_the_images() -> None:
    users = {int(re.findall(r"^USER (\d+)", read(f"infra/images/{name}.Dockerfile"), re.MULTILINE)[-1])
             for name in ("ray", "airflow")}  # fmt: skip
    ours = {pod["securityContext"]["runAsUser"] for pod in pods().values()}
    assert users == ours | {values()["uid"], values()["securityContexts"]["pod"]["runAsUser"]}


@pytest.mark.parametrize("name", ["ray head", "ray workers", "ray gpu-workers", "atlas-metrics"])
def test_pod_has_few_rights(name: str) -> None:
    pod = pods()[name]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False and pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys() & container["resources"]["limits"].keys()
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
    account = objects()["ServiceAccount", pod["serviceAccountName"]]
    assert account["automountServiceAccountToken"] is False


def test_airflow_has_few_rights() -> None:
    context = values()["securityContexts"]
    assert context["containers"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert context["pod"]["runAsNonRoot"] and context["pod"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for part in ("apiServer", "scheduler", "dagProcessor", "triggerer", "migrateDatabaseJob"):
        assert values()[part]["serviceAccount"] == {"create": False, "name": "airflow"}
        assert values()[part]["resources"].keys() == {"requests", "limits"}
    assert objects()["ServiceAccount", "airflow"]["automountServiceAccountToken"] is False


def test_health_is_asked_as_in_compose() -> None:
    for name in ("ray head", "ray workers", "ray gpu-workers"):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            command = pods()[name]["containers"][0][probe]["exec"]["command"]
            assert ["CMD", *command] == service("ray-head")["healthcheck"]["test"]


@pytest.mark.parametrize("file", [file for file in files() if file.startswith(f"{FOLDER}/")])
def test_no_file_holds_a_secret(file: str) -> None:
    assert not re.search(r"kind: *Secret\b|stringData|[0-9a-f]{32}", read(file))


def test_secrets_are_made_up_and_complete(tmp_path: Path) -> None:
    """With a kubectl that only writes down what it is asked."""
    fake = tmp_path / "kubectl"
    fake.write_text(f'#!/bin/sh\necho "$@" >>"{tmp_path}/asked"\ncat >"{tmp_path}/$6.env"\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    env = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "DATABASE_URL": "postgresql+psycopg2://a:b=c@host/x",
    }
    said = subprocess.run(
        ["sh", ROOT / FOLDER / "make-secrets.sh"], env=env, capture_output=True, text=True, check=True
    ).stderr  # fmt: skip
    made = {
        name: dict(line.split("=", 1) for line in (tmp_path / f"{name}.env").read_text().splitlines())
        for name in ("ray", "airflow")
    }
    (token,) = made["ray"].values()
    connection = json.loads(made["airflow"]["ray-connection"])
    of_compose = json.loads(service("airflow-init")["environment"]["AIRFLOW_CONN_RAY_DEFAULT"])
    assert connection == of_compose | {"host": "ray-head-svc", "password": token}  # KubeRay's: RayCluster, -head-svc
    assert made["airflow"]["connection"] == env["DATABASE_URL"] and made["airflow"]["admin-password"] in said
    assert len(token) == 64 and min(len(value) for value in made["airflow"].values()) >= 24
    assert not [
        value for secret in made.values() for value in secret.values() if value in (tmp_path / "asked").read_text()
    ]
    asked_for = {(secret, key) for secret, keys in made.items() for key in keys}
    assert asked_for == {("airflow", key) for _, key in OF_THE_CHART.values()} | references()


def references() -> set[tuple[str, str]]:
    """Secret and key, wherever a variable is taken from one."""
    found = {(each["secretName"], each["secretKey"]) for each in values()["secret"]}
    variables = [each for pod in pods().values() for each in pod["containers"][0]["env"]]
    for each in [*variables, *values()["apiServer"]["env"]]:
        if "valueFrom" in each:
            found.add((each["valueFrom"]["secretKeyRef"]["name"], each["valueFrom"]["secretKeyRef"]["key"]))
    return found


HEAD = {"ray.io/cluster": "ray", "ray.io/node-type": "head"}
WORKER = {"ray.io/cluster": "ray", "ray.io/node-type": "worker"}
AIRFLOW = {"tier": "airflow", "component": "scheduler"}
FIGURES = {"app.kubernetes.io/name": "atlas-metrics"}


def allows(direction: str, mine: dict[str, str], other: dict[str, str], port: int) -> bool:
    """Whether a policy of the namespace lets a pod of it be reached by (or reach) another one of it on a TCP port."""
    other_end = "from" if direction == "ingress" else "to"
    for (kind, _), policy in objects().items():
        if kind != "NetworkPolicy" or not fits(policy["spec"]["podSelector"], mine):
            continue
        for rule in policy["spec"].get(direction, []):
            ends = [end for end in rule[other_end] if end.keys() == {"podSelector"}]
            is_port = "ports" not in rule or any(each["port"] == port for each in rule["ports"])
            if is_port and any(fits(end["podSelector"], other) for end in ends):
                return True
    return False


def fits(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


@pytest.mark.parametrize(
    ("source", "target", "port", "allowed"),
    [
        (AIRFLOW, HEAD, 8265, True), (AIRFLOW, HEAD, 6379, False), (AIRFLOW, WORKER, 8265, False),
        (WORKER, HEAD, 6379, True), (HEAD, WORKER, 33000, True), (AIRFLOW, AIRFLOW, 8080, True),
        (AIRFLOW, AIRFLOW, 8793, True), (WORKER, AIRFLOW, 8080, False), (FIGURES, HEAD, 8265, False),
        (HEAD, FIGURES, 9108, False), ({}, HEAD, 8265, False), ({}, AIRFLOW, 8080, False),
    ],
)  # fmt: skip
def test_who_may_talk_to_whom(source: dict[str, str], target: dict[str, str], port: int, allowed: bool) -> None:
    """Each end alone says so: one policy that is too wide opens nothing."""
    assert (allows("egress", source, target, port), allows("ingress", target, source, port)) == (allowed, allowed)


def test_nothing_else_comes_in_or_goes_out() -> None:
    nothing = objects()["NetworkPolicy", "nothing"]["spec"]
    assert nothing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    outside = set()
    for (kind, name), policy in objects().items():
        for direction, end in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(direction, []) if kind == "NetworkPolicy" else []:
                assert rule[end], f"{name} lets everybody"
                ports = tuple(each["port"] for each in rule.get("ports", []))
                outside |= {(direction, name, ports) for each in rule[end] if each.keys() != {"podSelector"}}
    assert outside == {
        ("egress", "names", (53, 53)), ("egress", "store", (443,)), ("egress", "airflow", (5432,)),
        ("ingress", "atlas-metrics", (9108,)), ("ingress", "ray-metrics", (9110,)),
    }  # fmt: skip


def test_airflow_s_tasks_see_the_images_where_ray_sees_them() -> None:
    """`backfill` lists the deliveries."""
    folder = objects()["ConfigMap", "store"]["data"]["DAMAGE_ATLAS_DATA"]
    (of_ray,) = [each for each in service("ray-head")["volumes"] if each.endswith(f":{folder}:ro")]
    assert of_ray in service("airflow-scheduler")["volumes"]
    (mount,) = [each for each in values()["scheduler"]["extraVolumeMounts"] if each["mountPath"] == folder]
    (volume,) = [each for each in values()["scheduler"]["extraVolumes"] if each["name"] == mount["name"]]
    assert mount["readOnly"] and volume["persistentVolumeClaim"]["claimName"] in {
        name for kind, name in objects() if kind == "PersistentVolumeClaim"
    }


def test_the_way_out_is_for_those_who_notify() -> None:
    out = yaml.safe_load(read("infra/compose/way-out.yml"))
    for name, changes in out["services"].items():
        assert changes == {"networks": ["inside", "outside"]} and service(name)["networks"] == ["inside"], name
    assert set(out["services"]) == {f"airflow-{name}" for name in ("scheduler", "dag-processor", "triggerer")}
    assert out["networks"] == {"outside": {}}
