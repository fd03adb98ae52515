"""What class names say."""

from __future__ import annotations

import re

# Words that, in a class name, say that nothing is wrong. The report states which classes were taken so.
_UNDAMAGED = re.compile(
    r"(^|[^a-z])(sound|intact|normal|undamaged|uncracked|healthy|clean|background|none|ok|good|no|non|not)([^a-z]|$)",
    re.IGNORECASE,
)
# Words that turn one of them into its opposite, as in ``not_ok``.
_DENIED = re.compile(
    r"(^|[^a-z])(no|non|not)[^a-z]+(sound|intact|normal|undamaged|uncracked|healthy|clean|ok|good)([^a-z]|$)",
    re.IGNORECASE,
)


def is_undamaged(label: str) -> bool:
    """Whether a class name says that nothing is wrong (``sound``, ``deck_non_crack``, ``normal``).

    Of several labels, joined with ``+``, each must say so.
    """
    parts = [part.replace("_", " ") for part in label.split("+")]
    return all(_UNDAMAGED.search(part) is not None and _DENIED.search(part) is None for part in parts)


# Sewer-ML's codes, and how much each counts: its class importance weights (Haurum and Moeslund 2021, table 2).
SEWER_ML_IMPORTANCE = {
    "RB": 1.0000, "OB": 0.5518, "PF": 0.2896, "DE": 0.1622, "FS": 0.6419, "IS": 0.1847, "RO": 0.3559, "IN": 0.3131,
    "AF": 0.0811, "BE": 0.2275, "FO": 0.2477, "GR": 0.0901, "PH": 0.4167, "PB": 0.4167, "OS": 0.9009, "OP": 0.3829,
    "OK": 0.4396,
}  # fmt: skip
