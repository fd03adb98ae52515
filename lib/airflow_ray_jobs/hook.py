"""The Airflow connection of type ``ray``: host, port, the cluster's token as the password, and TLS."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_ray_jobs.airflow_compat import BaseHook, connection_for_trigger
from airflow_ray_jobs.client import RayAddress, RayJobsClient
from airflow_ray_jobs.errors import InvalidConnection
from airflow_ray_jobs.get_provider_info import CONNECTION

if TYPE_CHECKING:
    from airflow.sdk import Connection

DEFAULT_PORT = 8265


class RayHook(BaseHook):
    """Opens clients on Ray's Jobs API from an Airflow connection.

    The schema ``https`` means TLS; the extra fields ``verify`` and ``ca_file`` are those of :class:`RayAddress`.
    """

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
        """Which fields of the form are shown, and how: for an Airflow that does not read the provider's info."""
        return {key.replace("-", "_"): value for key, value in CONNECTION["ui-field-behaviour"].items()}

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """The form's further fields, likewise."""
        from wtforms import BooleanField, StringField  # type: ignore[import-untyped]

        kinds = {"verify": BooleanField, "ca_file": StringField}
        return {
            name: kinds[name](field["label"], default=field["schema"].get("default"))
            for name, field in CONNECTION["conn-fields"].items()
        }


def address_of(connection: Connection) -> RayAddress:
    """The address that a connection stands for.

    Raises :class:`InvalidConnection` when it names no host, or no token although the cluster is not on this machine:
    whoever reaches an open cluster may run anything on it.
    """
    if not connection.host:
        raise InvalidConnection(
            f"Connection {connection.conn_id} names no host. Give the host and port of Ray's dashboard."
        )
    scheme = connection.schema or "http"
    host = connection.host.removeprefix("http://").removeprefix("https://").rstrip("/")
    if connection.host.startswith("https://"):
        scheme = "https"
    port = "" if ":" in host and not connection.port else f":{connection.port or DEFAULT_PORT}"
    url = f"{scheme}://{host}{port}"
    token = connection.password or ""
    if not token and not _is_loopback(urlsplit(url).hostname or ""):
        raise InvalidConnection(
            f"Connection {connection.conn_id} has no token, and Ray at {url} is not on this machine: whoever reaches "
            "an open cluster may run anything on it. Start Ray with RAY_AUTH_MODE=token and put its token into the "
            "connection's password."
        )
    extra = connection.extra_dejson
    verify = extra.get("verify")
    return RayAddress(url, token, verify=verify is None or _is_true(verify), ca_file=extra.get("ca_file") or "")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_true(value: Any) -> bool:
    # A connection that is written as a URI carries text.
    return str(value).lower() not in ("false", "0", "no")
