"""The Airflow connection of type ``ray``: host, port, the cluster's token as the password, and TLS."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any

import httpx

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

    Raises :class:`InvalidConnection` when it names no host, another scheme than http and https, a token that fits no
    header, or no token although the cluster is not on this machine: whoever reaches an open cluster may run anything
    on it.
    """
    if not connection.host:
        raise InvalidConnection(
            f"Connection {connection.conn_id} names no host. Give the host and port of Ray's dashboard."
        )
    url = _url(connection.host.strip(), connection.schema or "", connection.port)
    token = (connection.password or "").strip()  # a token that was read from a file brings its line break
    extra = connection.extra_dejson
    verify = extra.get("verify")
    address = RayAddress(url, token, verify=verify is None or _is_true(verify), ca_file=extra.get("ca_file") or "")
    if not token and not _is_loopback(httpx.URL(url).host):
        raise InvalidConnection(
            f"Connection {connection.conn_id} has no token, and Ray at {url} is not on this machine: whoever reaches "
            "an open cluster may run anything on it. Start Ray with RAY_AUTH_MODE=token and put its token into the "
            "connection's password."
        )
    return address


def _url(host: str, schema: str, port: int | None) -> str:
    """Scheme, host and port, and the path of a gateway; a scheme before the host counts as well, and TLS wins."""
    before, mark, rest = host.partition("://")
    schemes = {scheme.strip().lower() for scheme in (schema, before if mark else "")} - {""}
    location, slash, path = (rest if mark else host).partition("/")
    if _is_ipv6(location):
        location = f"[{location}]"
    if port:  # the field counts more than what stands behind the host
        location = re.sub(r":\d+$", "", location) + f":{port}"
    elif not re.search(r":\d+$", location):
        location += f":{DEFAULT_PORT}"
    scheme = "https" if schemes == {"http", "https"} else "+".join(sorted(schemes)) or "http"
    return f"{scheme}://{location}{slash}{path}".rstrip("/")


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_true(value: Any) -> bool:
    # A connection that is written as a URI carries text.
    return str(value).lower() not in ("false", "0", "no")
