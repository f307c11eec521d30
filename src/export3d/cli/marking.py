"""What the commands that write images have in common: how their outputs are marked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from export3d.errors import ConfigError

if TYPE_CHECKING:
    from export3d.provenance.statement import Statement
    from export3d.provenance.writing import Marks


@dataclass(frozen=True)
class Marking:
    """How the output is marked.

    Attributes:
        label: also show the label "AI-generated" in the lower right corner.
        no_mark: write no marks at all: no metadata, no invisible mark, no label; a policy can forbid this.
    """

    label: bool = False
    no_mark: bool = False

    def cells(self) -> dict[str, str | None]:
        """As cells of a list of animations."""
        return {"label": "yes" if self.label else None, "no_mark": "yes" if self.no_mark else None}

    def check(self) -> None:
        """Report what cannot be before any work starts: what a policy forbids, a certificate that cannot sign."""
        from export3d.provenance import signing

        if self.marks().agreed().wanted and signing.available():
            signing.check()

    def marks(self, statement: Statement | None = None) -> Marks:
        """The marks of an output that was made from what the statement tells."""
        from export3d.provenance.writing import MARKED, NO_MARKS, Marks

        if self.label and self.no_mark:
            raise ConfigError("--label and --no-mark exclude each other; leave one out")
        if self.no_mark:
            return NO_MARKS
        return Marks(statement or MARKED.statement, self.label)

    @property
    def remark(self) -> str:
        """What the last message says about the marks; empty where the output has them."""
        return ", without marks" if self.no_mark else ""
