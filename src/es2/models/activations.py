"""The one place that reads and changes activations: the residual stream at a block's output.

Everything in es2 (probes, losses, attacks) hooks here, so that what a probe was fitted on is what
an attack perturbs. Layer `l` is 1-based and means the output of block `l`, before any final norm.
Edits may also name layer 0: what the first block reads, the embeddings with a family's scale on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

Edit = Callable[[Float[Tensor, "batch seq d"]], Float[Tensor, "batch seq d"]]


class Reached(Exception):
    """Raised inside a forward pass by `capture(..., stop=True)` at the highest layer asked for."""


def _stream(output: Any) -> Tensor:
    """The residual stream in a block's output: the output itself, or the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def capture(
    blocks: nn.ModuleList, layers: Iterable[int], stop: bool = False
) -> Iterator[dict[int, Float[Tensor, "batch seq d"]]]:
    """Within the context, each forward pass leaves the outputs of `layers` in the yielded dict.

    Args:
        blocks: the decoder's blocks.
        layers: 1-based layers.
        stop: leave the forward pass by `Reached` once the highest of the layers is there; the
            blocks above it are not run.
    """
    states: dict[int, Tensor] = {}
    top = max(layers := list(layers), default=0)

    def keep(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            states[layer] = _stream(output)
            if stop and layer == top:
                raise Reached

        return hook

    handles = [blocks[layer - 1].register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def edit(blocks: nn.ModuleList, edits: Mapping[int, Edit]) -> Iterator[None]:
    """Within the context, the output of each layer in `edits` is replaced by the edit's result.

    Layer 0 is the input of the first block.

    The next block sees the changed stream, so edits at several layers act in sequence. So does
    `capture`, inside this context or around it; of two contexts that edit a layer the inner acts
    first.
    """

    def change(function: Edit) -> Callable[..., Any]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            stream = function(_stream(output))
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return hook

    def change_input(function: Edit) -> Callable[..., Any]:
        def hook(_module: nn.Module, inputs: Any, named: dict[str, Any]) -> Any:
            if inputs:
                return (function(inputs[0]), *inputs[1:]), named
            return inputs, {**named, "hidden_states": function(named["hidden_states"])}

        return hook

    handles = [
        blocks[layer - 1].register_forward_hook(change(function), prepend=True)
        if layer
        else blocks[0].register_forward_pre_hook(change_input(function), with_kwargs=True)
        for layer, function in edits.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
