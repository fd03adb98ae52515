"""The Airflow connection of type ``ray``: host, port and the cluster's token as the password."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_ray_jobs.airflow_compat import BaseHook, connection_for_trigger
from airflow_ray_jobs.client import RayAddress, RayJobsClient

if TYPE_CHECKING:
    from airflow.sdk import Connection

DEFAULT_PORT = 8265


class RayHook(BaseHook):
    """Opens clients on Ray's Jobs API from an Airflow connection. Set the schema to ``https`` behind TLS."""

    conn_name_attr = "ray_conn_id"
    default_conn_name = "ray_default"
    conn_type = "ray"
    hook_name = "Ray"

    def __init__(self, ray_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.ray_conn_id = ray_conn_id

    def get_conn(self) -> RayJobsClient:
        """A blocking client; use it in a ``with`` block."""
        return RayJobsClient(address_of(self.get_connection(self.ray_conn_id)))

    async def address_for_trigger(self) -> RayAddress:
        """Where the Jobs API is, asked without blocking the triggerer's event loop."""
        return address_of(await connection_for_trigger(self.ray_conn_id))

    def test_connection(self) -> tuple[bool, str]:
        """Asks Ray for its version and, with the token, for a job: what the button in the UI shows."""
        try:
            with self.get_conn() as client:
                version = client.version()
                client.job("connection-test")
        except Exception as error:  # the UI shows the message, whatever it is
            return False, str(error)
        return True, f"Ray {version}"

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """The connection form: which fields are shown and what they are called."""
        return UI_FIELDS


UI_FIELDS: dict[str, Any] = {
    "hidden-fields": ["login", "extra"],
    "relabeling": {"password": "Token", "schema": "Scheme"},
    "placeholders": {"host": "ray-head", "port": str(DEFAULT_PORT), "schema": "http"},
}


def address_of(connection: Connection) -> RayAddress:
    """The address that a connection stands for; raises ValueError when it names no host."""
    if not connection.host:
        raise ValueError(f"Connection {connection.conn_id} names no host. Give the host and port of Ray's dashboard.")
    scheme = connection.schema or "http"
    host = connection.host.removeprefix("http://").removeprefix("https://").rstrip("/")
    if connection.host.startswith("https://"):
        scheme = "https"
    port = "" if ":" in host and not connection.port else f":{connection.port or DEFAULT_PORT}"
    return RayAddress(f"{scheme}://{host}{port}", connection.password or "")
