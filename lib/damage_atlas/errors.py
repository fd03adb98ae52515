"""The exception tree. Every error says what, where and what next, and whether trying again can help.

AtlasError                      exit code 1, not retryable unless it says so
├── InputError                  exit code 2: wrong usage, bad images, nothing to do
│   └── SpecError               exit code 2: a setting that is misspelt, out of range or changed under a run
├── ContractError               an artifact is missing, unfinished, or not what its digest says
├── MachineError                retryable: this machine failed us: no memory, a process that was killed
├── StoreError                  retryable: the store did not answer or refused
│   ├── ObjectNotFoundError     not retryable: nothing has that name
│   └── ObjectExistsError       not retryable: put-if-absent lost
└── PublishConflictError        another run published first
"""

from __future__ import annotations


class AtlasError(Exception):
    """Base of all errors a person is meant to read.

    Args:
        message: one line: what happened, where, what to do next.
        retryable: whether the same call may succeed later without a person's help.
    """

    exit_code = 1
    retryable_by_default = False

    def __init__(self, message: str, *, retryable: bool | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retryable = self.retryable_by_default if retryable is None else retryable

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        # Errors cross process borders (Ray, multiprocessing); the default would lose `retryable`.
        return _rebuild, (type(self), self.message, self.retryable)


def _rebuild(kind: type[AtlasError], message: str, retryable: bool) -> AtlasError:
    return kind(message, retryable=retryable)


class InputError(AtlasError):
    """The user's input cannot be worked with: wrong usage, unusable images, nothing to do."""

    exit_code = 2


class TrainingDivergedError(InputError):
    """The loss is no number any more: the settings are to be changed."""


class SpecError(InputError):
    """A setting is misspelt, out of range, or differs from the one a run was started with."""


class ContractError(AtlasError):
    """An artifact is missing, unfinished, or does not match its digest."""


class MachineError(AtlasError):
    """This machine failed: memory ran out, or a process was killed from outside. Says nothing about the images."""

    retryable_by_default = True


class StoreError(AtlasError):
    """The store did not answer, or refused the request."""

    retryable_by_default = True


class ObjectNotFoundError(StoreError):
    """Nothing in the store has this name."""

    retryable_by_default = False


class ObjectExistsError(StoreError):
    """Put-if-absent lost: an object with this name exists already."""

    retryable_by_default = False


class PublishConflictError(AtlasError):
    """Another run of the archive became the current version first."""
