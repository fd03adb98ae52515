"""What can go wrong between this bridge and Ray's Jobs API, independent of Airflow.

RayJobsError
├── RayUnreachable      no answer, or an answer that says "not now": another try may help
├── RayRefused          the token is missing or wrong: mend the connection
├── InvalidConnection   the Airflow connection cannot be used, or would leave a cluster open: mend it
├── InvalidRequest      Ray understood the request and rejects it: the same request will be rejected again
├── VersionMismatch     what is installed on Airflow's side and on Ray's does not fit together
└── ProtocolError       the job wrote a RAY_JOB_RESULT line that cannot be used
"""

from __future__ import annotations


class RayJobsError(Exception):
    """Base of all errors of this package. The message says what, where and what next."""


class RayUnreachable(RayJobsError):
    """Ray did not answer, or answered that it cannot now. Trying again may help."""


class RayRefused(RayJobsError):
    """Ray rejects the token (401 or 403). Mend the password of the Airflow connection."""


class InvalidConnection(RayJobsError):
    """The Airflow connection names no host, no token where one is needed, or a CA file that cannot be read."""


class InvalidRequest(RayJobsError):
    """Ray rejects what was asked for (400). The same request will be rejected again."""


class VersionMismatch(RayJobsError):
    """What is installed on Airflow's side and on Ray's does not fit together. No retry helps."""


class ProtocolError(RayJobsError):
    """A job's ``RAY_JOB_RESULT`` line is not a JSON object, or it is too large for an XCom."""
