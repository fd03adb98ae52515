"""Which lines of a growing log are new. Pure; no I/O."""

from __future__ import annotations

from collections.abc import Iterator

from airflow_ray_jobs.protocol import shown_line

MAX_LINES_AT_ONCE = 2000


class LogFollower:
    """Gives every line of a growing log once.

    Ray's API returns the whole log each time, so what was shown is remembered as a position in it.
    """

    def __init__(self) -> None:
        self._shown_chars = 0

    def new_lines(self, log: str, ended: bool) -> Iterator[str]:
        """The lines that were not given before; a last line without its end waits, unless the job has ``ended``.

        Of more than :data:`MAX_LINES_AT_ONCE` new lines only the last are given, behind a line that counts the
        others: a job that floods its log must not flood Airflow's.
        """
        end = len(log) if ended else log.rfind("\n") + 1
        begin, self._shown_chars = self._shown_chars, max(self._shown_chars, end)
        end -= log.endswith("\n", begin, end)
        # From the end, and no list of all lines: a log may have 100 MB.
        last = end
        for _ in range(MAX_LINES_AT_ONCE):
            if (last := log.rfind("\n", begin, last)) < 0:
                break
        else:
            left_out = log.count("\n", begin, last) + 1
            yield f"[{left_out} lines are left out here; Ray's dashboard has the whole log]"
            begin = last + 1
        for line in log[begin:end].split("\n"):
            if shown := shown_line(line):
                yield shown
