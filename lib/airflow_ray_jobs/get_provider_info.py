"""What Airflow reads through the entry point ``apache_airflow_provider``."""

from __future__ import annotations

from typing import Any

# The form of the connection type ``ray``. Extra stays hidden: it holds the fields below.
CONNECTION: dict[str, Any] = {
    "connection-type": "ray",
    "hook-class-name": "airflow_ray_jobs.hook.RayHook",
    "hook-name": "Ray",
    "ui-field-behaviour": {
        "hidden-fields": ["login", "extra"],
        "relabeling": {"password": "Token", "schema": "Scheme"},
        "placeholders": {"host": "ray-head", "port": "8265", "schema": "http, or https behind TLS"},
    },
    "conn-fields": {
        "verify": {
            "label": "Verify certificate",
            "schema": {"type": ["boolean", "null"], "default": True},
            "description": "With https: check the certificate of Ray's dashboard, or of the proxy before it.",
        },
        "ca_file": {
            "label": "CA file",
            "schema": {"type": ["string", "null"]},
            "description": "PEM file, on workers and triggerers, that it is checked against. Empty: the usual CAs.",
        },
    },
}


def get_provider_info() -> dict[str, Any]:
    """The provider's record, in the format of Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-ray-jobs",
        "name": "Ray Jobs",
        "description": "Runs Ray jobs as deferrable Airflow tasks through Ray's Jobs REST API.",
        "connection-types": [CONNECTION],
        "task-decorators": [{"name": "ray_job", "class-name": "airflow_ray_jobs.decorator.ray_job_task"}],
    }
