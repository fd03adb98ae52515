"""Who is told when a run fails or is late: Airflow notifiers that ops configure, none by default.

``DAMAGE_ATLAS_NOTIFIERS`` holds a JSON list. Each entry names a notifier class of an installed Airflow provider, and
its arguments. Texts are templates, with ``dag_run``, and with ``deadline`` where the run is late. Airflow hands over
the run as an object in the one case and as its API's document in the other, hence the two names of its id::

    [{"notifier": "airflow.providers.smtp.notifications.smtp.SmtpNotifier", "to": "ops@example.org",
      "subject": "{{ dag_run.dag_id }} {{ 'is late' if deadline is defined else 'failed' }}",
      "html_content": "{{ dag_run.run_id or dag_run.dag_run_id }}"}]

Credentials stand in Airflow connections, never here: whoever may read a DAG's details may read these.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseNotifier
from airflow.sdk.definitions.callback import AsyncCallback, SyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from airflow.sdk.module_loading import import_string

VARIABLE = "DAMAGE_ATLAS_NOTIFIERS"


def alerts(deadline_hours: float) -> dict[str, Any]:
    """What a DAG is made with: whom its failures are told, and its deadline, counted from when a run is queued."""
    configured = _configured()
    return {
        "on_failure_callback": [notifier(**arguments) for notifier, arguments in configured],
        "deadline": [
            DeadlineAlert(
                name=f"{deadline_hours:g} hours",
                reference=DeadlineReference.DAGRUN_QUEUED_AT,
                interval=timedelta(hours=deadline_hours),
                callback=_callback(notifier)(notifier, arguments),
            )
            for notifier, arguments in configured
        ],
    }


def _configured() -> list[tuple[type[BaseNotifier], dict[str, Any]]]:
    """The notifier classes and their arguments; ValueError, shown by Airflow as an import error, says what to mend."""
    text = os.environ.get(VARIABLE, "").strip()
    found = []
    try:
        for entry in json.loads(text) if text else []:
            arguments = dict(entry)
            name = arguments.pop("notifier")
            notifier = import_string(name)
            if not (isinstance(notifier, type) and issubclass(notifier, BaseNotifier)):
                raise TypeError(f"{name} is no Airflow notifier")
            notifier(**arguments)
            found.append((notifier, arguments))
    except (ValueError, KeyError, TypeError, ImportError) as error:
        raise ValueError(
            f"{VARIABLE} cannot be used ({type(error).__name__}: {error}). It is a JSON list of objects, each with "
            '"notifier", the import path of an installed notifier class, and that class\'s arguments.'
        ) from error
    return found


def _callback(notifier: type[BaseNotifier]) -> type[AsyncCallback | SyncCallback]:
    """Where a late run is told: in the triggerer if the notifier can, else by the executor."""
    return SyncCallback if notifier.async_notify is BaseNotifier.async_notify else AsyncCallback
