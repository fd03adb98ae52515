"""The network that a training starts with."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from damage_atlas.errors import InputError
from damage_atlas.network import CustomNet, EmbeddingNet, build_network
from damage_atlas.spec import TrainSpec


def network_arguments(spec: TrainSpec) -> dict[str, Any]:
    """Arguments of `build_network`, as the model card keeps them."""
    arguments: dict[str, Any] = {
        "kind": spec.network,
        "input_size": spec.input_size,
        "embedding_size": spec.embedding_size,
        "standardize": spec.standardize,
        "pooling": spec.pooling,
    }
    if spec.network == "custom":
        arguments |= {"module": spec.module, "arguments": spec.module_arguments}
    return arguments


def new_network(spec: TrainSpec) -> EmbeddingNet:
    """The network with its first weights: drawn from ``train.seed``, a backbone's read where there is a file.

    Raises:
        InputError: the backbone, or its weights, are not there or do not fit, or could not be kept in the end.
    """
    # The generator is this function's own: nobody else's draws move the first weights.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        network = build_network(**network_arguments(spec))
    if spec.module_weights is not None and isinstance(network, CustomNet):
        try:
            network.backbone.load_state_dict(load_file(spec.module_weights))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InputError(
                f"train.module_weights: {spec.module_weights} does not hold the weights of {spec.module} "
                f"({' '.join(str(error).split())[:200]}). It is a safetensors file with the names of its state_dict()."
            ) from error
    if isinstance(network, CustomNet):
        _refuse_what_cannot_be_kept(network, spec)
    return network


def _refuse_what_cannot_be_kept(network: CustomNet, spec: TrainSpec) -> None:
    # Tied parameters, say: the first checkpoint would fail, after minutes of work.
    try:
        save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    except Exception as error:  # the user's class may make its own state_dict()
        raise InputError(
            f"train.module: the weights of {spec.module} cannot be kept as safetensors "
            f"({' '.join(str(error).split())[:200]}). Give each of its parameters and buffers a tensor of its own."
        ) from error
