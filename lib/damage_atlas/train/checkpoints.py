"""Checkpoints in the store, as safetensors: weights, Adam's moments, class means, history; the newest one counts."""

from __future__ import annotations

import json
from contextlib import suppress

import torch
from safetensors.torch import load, save
from torch import Tensor

from damage_atlas.errors import ObjectExistsError
from damage_atlas.store import Store
from damage_atlas.train.loop import TrainingState

_KEPT = 2


def save_checkpoint(store: Store, folder: str, state: TrainingState) -> None:
    """Write ``<folder>/<iteration>.safetensors`` and drop all but the newest two.

    An object appears whole or not at all, so a worker killed while writing leaves the one before.
    """
    tensors = {f"network.{name}": tensor.contiguous() for name, tensor in state.network.state_dict().items()}
    for index, values in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor.contiguous() for name, tensor in values.items()}
    if state.class_means is not None:
        tensors["class_means"] = state.class_means
    progress = json.dumps({"iteration": state.iteration, "seconds": state.seconds, "history": state.history})
    tensors["progress"] = torch.frombuffer(bytearray(progress.encode()), dtype=torch.uint8)
    # It may be there: an attempt that was replaced has written the same state.
    with suppress(ObjectExistsError):
        store.create(_key(folder, state.iteration), save(tensors))
    for key in _keys(store, folder)[:-_KEPT]:
        store.delete(key)


def newest_checkpoint(store: Store, folder: str) -> int:
    """The iteration of the newest checkpoint; 0 when there is none."""
    keys = _keys(store, folder)
    return int(keys[-1].rpartition("/")[2].partition(".")[0]) if keys else 0


def load_checkpoint(store: Store, folder: str, state: TrainingState, iteration: int) -> None:
    """Bring ``state`` to the checkpoint of ``iteration``.

    Raises:
        StoreError: it is not there, or not any more.
    """
    tensors = load(store.read(_key(folder, iteration)))
    progress = json.loads(bytes(tensors.pop("progress").numpy().tobytes()))
    state.network.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("network.")})
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, moment = name.split(".", 2)
            moments.setdefault(int(index), {})[moment] = tensor
    document = state.optimizer.state_dict()
    state.optimizer.load_state_dict({"state": moments, "param_groups": document["param_groups"]})
    state.class_means = tensors.get("class_means")
    state.iteration, state.seconds, state.history = progress["iteration"], progress["seconds"], progress["history"]


def _key(folder: str, iteration: int) -> str:
    return f"{folder}/{iteration:08d}.safetensors"


def _keys(store: Store, folder: str) -> list[str]:
    return sorted(item.key for item in store.list(folder) if item.key.endswith(".safetensors"))
