"""The explanation as one JSON document (schemas/explanation.v1.json): a promise to other programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

    from forensics.explanation import Explanation


def render(explanation: Explanation, out: TextIO) -> None:
    """Write the document form, keys sorted."""
    json.dump(explanation.document(), out, ensure_ascii=False, indent=2, sort_keys=True, default=str)
    out.write("\n")
