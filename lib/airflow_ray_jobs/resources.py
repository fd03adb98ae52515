"""What a waiting job asks for, against what the cluster has. Pure; no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Resources = Mapping[str, float]


def waiting_for(wanted: Resources, nodes: Sequence[Resources]) -> str:
    """What a job waits for, in words: ``1 GPU, cluster has 0``.

    What no node can ever give is named alone; else all that is asked for, since it is only taken at the moment.

    Args:
        wanted: what the job's own process asks for, by Ray's names (``CPU``, ``GPU``, custom ones); one node has to
            give it all.
        nodes: what each living node has in total, used or not.
    """
    if not wanted:
        return "its environment, or for a node that takes it"
    missing, taken = [], []
    for name, amount in wanted.items():
        each = [node.get(name, 0) for node in nodes]
        if sum(each) < amount:
            missing.append(f"{amount:g} {name}, cluster has {sum(each):g}")
        elif max(each) < amount:
            missing.append(f"{amount:g} {name} on one node, the largest has {max(each):g}")
        else:
            taken.append(f"{amount:g} {name}, cluster has {sum(each):g}")
    return " and ".join(missing) or " and ".join(taken) + ", in use"
