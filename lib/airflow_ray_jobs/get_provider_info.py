"""What Airflow reads through the entry point ``apache_airflow_provider`` to show the connection type ``ray``."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """The provider's record, in the format of Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-ray-jobs",
        "name": "Ray Jobs",
        "description": "Runs Ray jobs as deferrable Airflow tasks through Ray's Jobs REST API.",
        "connection-types": [
            {
                "connection-type": "ray",
                "hook-class-name": "airflow_ray_jobs.hook.RayHook",
                "hook-name": "Ray",
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "extra"],
                    "relabeling": {"password": "Token", "schema": "Scheme"},
                    "placeholders": {"host": "ray-head", "port": "8265", "schema": "http"},
                },
            }
        ],
    }
