"""Verify on Ray: re-hash everything that an archive's current version holds."""

from __future__ import annotations

import argparse

from damage_atlas.errors import ContractError
from damage_atlas.publish import verify_run
from damage_atlas.query import published_run
from damage_atlas.store import Store, read_version
from workers.job import say_result, told_to_caller
from workers.logs import log_to_stdout

_NAMED = 5  # problems in the message; `damage-atlas verify` prints all


def main() -> None:
    """Verify the version named on the command line."""
    parser = argparse.ArgumentParser(prog="workers.verify")
    parser.add_argument("store")
    parser.add_argument("archive")
    arguments = parser.parse_args()
    log_to_stdout({"archive": arguments.archive, "stage": "verify"})
    with told_to_caller():
        store = Store(arguments.store)
        version = read_version(store, arguments.archive).version
        problems = verify_run(published_run(store, arguments.archive, version))
        if problems:
            more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
            raise ContractError(
                f"version {version} of {arguments.archive}: {'; '.join(problems[:_NAMED])}{more}. Restore these from a "
                "backup, or go back to a sound version (damage-atlas rollback)."
            )
    say_result({"archive": arguments.archive, "version": version, "problems": len(problems)})


if __name__ == "__main__":
    main()
