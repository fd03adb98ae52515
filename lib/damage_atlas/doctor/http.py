"""Asking Ray, Airflow and an S3 server over HTTP: where they are, what they answer, what time it is there."""

from __future__ import annotations

import ipaddress
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from damage_atlas.errors import InputError

_TIMEOUT_S = 10
_MOST_BYTES = 1024**2


@dataclass(frozen=True)
class Place:
    """Where Ray's dashboard or Airflow's API is.

    Attributes:
        token: sent as a bearer token; empty for none.
        ca_file: PEM file that certificates are checked against; None for the usual ones.
    """

    url: str
    token: str = ""
    verify: bool = True
    ca_file: str | None = None


@dataclass(frozen=True)
class Answer:
    """What was answered, whatever the status."""

    status: int
    body: bytes
    skew_s: float | None  # their clock less ours; None where the answer carries no date


class Silent(Exception):
    """Nobody answered; the message says why."""


def ray_place(url: str | None, env: Mapping[str, str]) -> Place | None:
    """Where Ray is and with what token, from an address or the environment; None where nothing says it.

    Raises:
        InputError: the connection in the environment cannot be read.
    """
    token = env.get("RAY_AUTH_TOKEN", "")
    if not token and (file := env.get("RAY_AUTH_TOKEN_PATH")):
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"RAY_AUTH_TOKEN_PATH: {file} cannot be read ({error}). Correct the path.") from error
    connection = env.get("AIRFLOW_CONN_RAY_DEFAULT", "").strip()
    if url or env.get("RAY_API_SERVER_ADDRESS"):
        place = Place(http_address(url or env["RAY_API_SERVER_ADDRESS"], "Ray"), token)
        if token or not connection:
            return place
        known = _read_connection(connection)
        # A connection's token goes to that connection's Ray and to nobody else.
        return known if urlsplit(known.url).netloc == urlsplit(place.url).netloc else place
    return _read_connection(connection) if connection else None


def _read_connection(text: str) -> Place:
    """An Airflow connection of type ``ray``, as JSON or as a URI; with its token, which no message may show."""
    wrong = InputError("AIRFLOW_CONN_RAY_DEFAULT cannot be read. Write it as JSON: conn_type, host, port, password.")
    try:
        if text.startswith("{"):
            fields = json.loads(text)
            extra = fields.get("extra") or {}
            extra = json.loads(extra) if isinstance(extra, str) else extra
            host, port, token = fields["host"], fields.get("port"), fields.get("password") or ""
            scheme = fields.get("schema") or "http"
        else:
            parts = urlsplit(text)
            host, port, token = parts.hostname, parts.port, unquote(parts.password or "")
            scheme, extra = parts.path.strip("/") or "http", {}
        if not host:
            raise wrong
        before, mark, rest = str(host).partition("://")
        scheme, host = (before, rest) if mark else (scheme, host)
        address = f"{scheme.lower()}://{host}" + (f":{port}" if port else "" if ":" in str(host) else ":8265")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise wrong from None
    verify = str(extra.get("verify", True)).lower() not in ("false", "0", "no")
    return Place(http_address(address, "Ray"), token.strip(), verify, extra.get("ca_file"))


def http_address(url: str, whose: str) -> str:
    """The address without a slash at its end; InputError unless it is one of HTTP that carries no user."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or True)
    except ValueError:
        usable = False
    if not usable or parts.username or parts.password:
        # Not quoted: what stands before an @ is a secret.
        raise InputError(f"{whose}'s address is not usable: it reads http://HOST:PORT, without a user.")
    return url.rstrip("/")


class _StayHere(urllib.request.HTTPRedirectHandler):
    """A token must not follow a redirect to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None: the answer is taken as it is."""


def ask(place: Place, path: str) -> Answer:
    """GET ``path`` there, with the token; redirects are not followed. Raises :class:`Silent` without an answer."""
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {place.token}"} if place.token else {})
    handlers: list[Any] = [_StayHere()]
    if is_loopback(place.url):
        handlers.append(urllib.request.ProxyHandler({}))
    if place.url.startswith("https"):
        handlers.append(urllib.request.HTTPSHandler(context=_tls(place)))
    opener = urllib.request.build_opener(*handlers)
    before = time.time()
    try:
        request = urllib.request.Request(place.url + path, headers=headers)
        with opener.open(request, timeout=_TIMEOUT_S) as response:
            status, body, date = response.status, response.read(_MOST_BYTES), response.headers.get("Date")
    except urllib.error.HTTPError as error:
        with error:
            status, body, date = error.code, error.read(_MOST_BYTES), error.headers.get("Date")
    except urllib.error.URLError as error:
        raise Silent(str(error.reason)) from error
    except (OSError, HTTPException, ValueError) as error:
        raise Silent(f"{type(error).__name__}: {error}") from error
    return Answer(status, body, _skew(date, before, time.time()))


def _skew(date: str | None, before: float, after: float) -> float | None:
    """Their clock less ours: 0 if a moment between asking and being answered fits the date, a whole second."""
    try:
        theirs = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return None
    return max(theirs - after, 0.0) or min(theirs + 1 - before, 0.0)


def _tls(place: Place) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=place.ca_file)
    except OSError as error:
        raise InputError(f"the CA file {place.ca_file} cannot be used ({error}). It has to be a PEM file.") from error
    if not place.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def is_loopback(url: str) -> bool:
    """Whether the address is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def field(answer: Answer, *path: str) -> str | None:
    """The text at a path of an answer's JSON object; None where there is no such text."""
    try:
        value = json.loads(answer.body) if answer.status == 200 else None
    except ValueError:
        return None
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None
