"""A training step recorded once and replayed: a GPU that does not wait for Python. Chapter 12.

A step of a thin network is a thousand small kernels. Python needs longer to ask for them than a GPU
to run them. A CUDA graph asks for all at once: it holds the kernels and the addresses that they read
and write, so that new numbers are copied into the old places, and the whole is played again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

__all__ = ["Recording"]

WARMUP = 3  # calls before the recording: the libraries choose their kernels and set up their workspaces


class Recording:
    """A function with its gradients, recorded on a GPU. Afterwards the leaves have the gradients, the buffers are as before.

    Args:
        compute: takes tensors, calls ``backward()`` and returns a tensor. It must not wait for the GPU (``.item()``), and
            all else that it reads must stay where it is: change it in place.
        inputs: what it takes; later calls take others of the same shapes and layouts.
        leaves: what it leaves gradients in.
        buffers: what it changes, such as running statistics: the calls that warm up leave no trace in them.

    Raises:
        ValueError: it cannot be recorded.
    """

    def __init__(self, compute: Callable[..., Tensor], inputs: tuple[Tensor, ...], leaves: Iterable[Tensor], buffers: Iterable[Tensor]) -> None:
        self.inputs, self.leaves, buffers = tuple(x.clone() for x in inputs), list(leaves), list(buffers)
        before = [buffer.clone() for buffer in buffers]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP):
                self.forget()
                compute(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.forget()  # so that the gradients get places of the recording's own
        self.graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self.graph):
                self.result = compute(*self.inputs)
        except RuntimeError as error:
            raise ValueError(f"a step must do nothing but compute on tensors to be recorded (replay=False runs it all the same), got: {error}") from error
        self.gradients = [leaf.grad for leaf in self.leaves]
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)

    def forget(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """What ``compute`` would return; the tensor is the same one in each call."""
        for old, new in zip(self.inputs, inputs, strict=True):
            old.copy_(new)
        self.graph.replay()
        for leaf, gradient in zip(self.leaves, self.gradients, strict=True):
            leaf.grad = gradient
        return self.result
