"""What comes of a job beside its result: a process that died, or an exception."""

from __future__ import annotations

from dataclasses import dataclass

from export3d.errors import Export3DError


@dataclass(frozen=True)
class Crash:
    """The outcome of a job whose process died on every attempt. The exit code is None where nobody saw it."""

    exit_code: int | None


@dataclass(frozen=True)
class Failure:
    """An exception that a job raised, in a form that can always be pickled."""

    kind: type[Export3DError]
    message: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Exceptions that are not of the package become an `Export3DError` with their message."""
        if isinstance(error, Export3DError):
            return cls(type(error), str(error))
        return cls(Export3DError, f"{type(error).__name__}: {error}")

    def error(self) -> Export3DError:
        """The exception again."""
        # `__new__`, since some classes take other arguments in `__init__` and only the message is available.
        return self.kind.__new__(self.kind, self.message)
