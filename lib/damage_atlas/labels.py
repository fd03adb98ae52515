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
