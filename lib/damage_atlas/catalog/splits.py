"""Which images are held out. Pure: no group is on both sides, classes keep their shares as groups allow."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence


def assign_splits(groups: Sequence[str], classes: Sequence[str], test_share: float, seed: int) -> list[str]:
    """``train`` or ``test`` for every row.

    Stratified and grouped, dealt out greedily as scikit-learn's StratifiedGroupKFold does: largest groups
    first, equals in an order that the seed shuffles, each to where it leaves the classes nearest to their
    shares. Unlike folds this meets any share and needs no minimum of rows or groups: a group that holds all
    of a class goes to train, for a class that is not learnt cannot be tested. One group is all train.

    Args:
        groups: of each row; rows of one group share a side.
        classes: of each row; for several labels, the labels joined.
        test_share: share of each class that should be held out, below 1.
        seed: decides among equals.
    """
    rows_of: dict[str, Counter[str]] = {}
    for group, name in zip(groups, classes, strict=True):
        rows_of.setdefault(group, Counter())[name] += 1
    totals = Counter(classes)

    order = sorted(rows_of)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: -sum(n / totals[name] for name, n in rows_of[group].items()))

    shares = {"train": 1 - test_share, "test": test_share}
    dealt = {side: Counter[str]() for side in shares}
    side_of: dict[str, str] = {}
    for group in order:
        rows = rows_of[group]
        if test_share == 0 or any(n == totals[name] for name, n in rows.items()):
            side = "train"
        else:
            # Growth of sum(dealt^2 / wanted), which is least when every class is dealt by the shares.
            growth = {
                side: sum(n * (2 * dealt[side][name] + n) / totals[name] ** 2 for name, n in rows.items()) / share
                for side, share in shares.items()
            }
            side = "test" if growth["test"] < growth["train"] else "train"
        dealt[side].update(rows)
        side_of[group] = side
    return [side_of[group] for group in groups]
