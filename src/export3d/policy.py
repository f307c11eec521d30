"""The policy of this machine: what generated images must carry, and whose portraits may be animated.

The policy is a TOML file with at most three keys:

    marks = "required"     # or "default": marks unless --no-mark
    label = true           # the visible label on every output
    consent = "register"   # or "open": any portrait

It is the file that `EXPORT3D_POLICY` names, otherwise `policy.toml` in the user's folder (`files.home`). Without a file
the defaults apply. A file that cannot be read is an error: it never means the defaults.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from export3d.errors import ConfigError, PolicyError
from export3d.files import check_input, chosen_path, home, kind_at, reading, reason, sniff

FILE = "policy.toml"
Marks = Literal["default", "required"]
Consent = Literal["open", "register"]

_LIMIT = 100_000
"""A policy file is no longer than this, bytes."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is allowed here.

    Attributes:
        marks: "default": outputs are marked unless the user says otherwise. "required": no output without marks.
        label: every output carries the visible label; then no output goes without marks either.
        consent: "open": any portrait may be animated. "register": only portraits of people in the consent register.
    """

    marks: Marks = "default"
    label: bool = False
    consent: Consent = "open"

    @property
    def forbids_unmarked(self) -> bool:
        """Whether outputs without marks are refused."""
        return self.marks == "required" or self.label

    def for_server(self, registered: bool) -> Policy:
        """This policy where others are served: marks and the label are required.

        Args:
            registered: whether the consent register has an entry; then it decides who may be animated.
        """
        return Policy(marks="required", label=True, consent="register" if registered else self.consent)


def current_policy() -> Policy:
    """The policy that applies now; the file is read at each call.

    Raises:
        PolicyError: the file is missing although `EXPORT3D_POLICY` names it, cannot be read, is not TOML, or has an
            unknown key or value.
    """
    path = _policy_file()
    return Policy() if path is None else read_policy(path)


def read_policy(path: Path) -> Policy:
    """The policy in a file; raises `PolicyError` as `current_policy` does."""
    check_input(path, PolicyError, "a policy file (TOML)")
    with reading(path, PolicyError):
        data = sniff(path, _LIMIT + 1)
    try:
        if len(data) > _LIMIT:
            raise ValueError(f"it is longer than {_LIMIT} bytes")
        content = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as problem:  # also what is neither TOML nor UTF-8
        raise PolicyError(f"the policy {path} cannot be read ({reason(problem)}); correct it") from problem
    known = {field.name for field in fields(Policy)}
    for key in content.keys() - known:
        raise PolicyError(f"the policy {path} has an unknown key {key!r}; its keys are {', '.join(sorted(known))}")
    allowed = {"marks": get_args(Marks), "label": (True, False), "consent": get_args(Consent)}
    for key, value in content.items():
        if not any(value is one or (isinstance(value, str) and value == one) for one in allowed[key]):
            choices = " or ".join(f'"{one}"' if isinstance(one, str) else str(one).lower() for one in allowed[key])
            raise PolicyError(f"the policy {path} sets {key} to {value!r}; it must be {choices}")
    return Policy(**content)


def _policy_file() -> Path | None:
    """The policy file, which may be missing if it was named; None if there is none."""
    if chosen := os.environ.get("EXPORT3D_POLICY"):
        return chosen_path("EXPORT3D_POLICY", chosen, PolicyError)
    try:
        path = home() / FILE
    except ConfigError:  # no home folder: nobody can have put a policy there
        return None
    there = kind_at(path, PolicyError) is not None or path.is_symlink()  # a broken link is a policy that is lost
    return path if there else None
