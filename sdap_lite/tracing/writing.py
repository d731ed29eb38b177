"""Writes a network down as a list of operations, with ``torch.fx``; code may look at shapes.

``torch.fx`` runs the model's code on stand-ins (proxies) and notes what is done to them. It stops
where code asks a stand-in for a number, as in ``if x.shape[-1] % 2`` or ``range(x.ndim)``. Here a
stand-in answers: with what the example's shapes give. The asked nodes are noted (``asked``): an
answer that would change with the number of channels must not, so those channels stay.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute

from ..layers import ChannelPad

__all__ = ["Writer"]

FACTORIES = "zeros ones full empty rand randn arange linspace".split()
QUESTIONS = "is_tensor finfo iinfo".split()  # about what a stand-in stands for


class _Answers:
    """What a stand-in answers when it is asked for a number."""

    node: fx.Node
    tracer: Any

    def __getattr__(self, name: str) -> Any:
        if name in ("type", "index") and isinstance(value := self.tracer.peek(self.node), torch.device):
            return getattr(value, name)
        if name.startswith("__array"):
            raise AttributeError(name)
        return _Attribute(self, name)  # type: ignore[arg-type]

    def __int__(self) -> int:
        return int(self.tracer.number(self.node))

    def __index__(self) -> int:
        return int(self.tracer.number(self.node))

    def __float__(self) -> float:
        return float(self.tracer.number(self.node))

    def __ceil__(self) -> int:
        return math.ceil(self.tracer.number(self.node))

    def __floor__(self) -> int:
        return math.floor(self.tracer.number(self.node))

    def __round__(self, digits: int | None = None) -> Any:
        return round(self.tracer.number(self.node), digits)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        import numpy as np

        return np.asarray(self.tracer.number(self.node))

    def __len__(self) -> int:
        return len(self.tracer.items(self.node))

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError("code that assigns to a part of a tensor, x[...] = y, cannot be written down: make a new one, by torch.where, masked_fill or torch.cat")


class _Proxy(_Answers, fx.Proxy):
    pass


class _Attribute(_Answers, Attribute):
    pass


class Writer(fx.Tracer):
    """Writes a model down; buffers by name, as parameters are.

    Args:
        example: one input, on the model's device (``meta`` will do).

    Attributes:
        asked: the names of nodes whose value the code was told.
    """

    proxy_buffer_attributes = True

    def __init__(self, example: Tensor) -> None:
        # einops asks what kind of tensor it is given, so its functions are written down whole, as those of math are
        super().__init__(autowrap_modules=(math, *([sys.modules["einops"]] if "einops" in sys.modules else [])))  # type: ignore[arg-type]
        self.example = example
        self.asked: set[str] = set()
        self.values: dict[fx.Node, Any] = {}
        self.paths: dict[int, str] = {}
        self.answering = False  # while the tracer itself runs modules, nothing is written down

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        """Also through functions that make a tensor of a size, which torch.fx does not follow by itself."""
        originals = {name: getattr(torch, name) for name in FACTORIES + QUESTIONS}
        try:
            for name, original in originals.items():
                setattr(torch, name, (self.noting if name in FACTORIES else self.telling)(original))
            with self.asking_for_types(root):
                return super().trace(root, concrete_args)
        finally:
            for name, original in originals.items():
                setattr(torch, name, original)

    @contextmanager
    def asking_for_types(self, root: Any) -> Iterator[None]:
        """Meanwhile ``isinstance`` in the files of the user's modules looks at a stand-in's value."""
        names = {type(m).__module__ for m in root.modules()} if isinstance(root, nn.Module) else set()
        homes = [vars(sys.modules[name]) for name in names if name in sys.modules and not name.startswith("torch.")]
        homes = [home for home in homes if "isinstance" not in home]
        for home in homes:
            home["isinstance"] = self.is_instance
        try:
            yield
        finally:
            for home in homes:
                del home["isinstance"]

    def is_instance(self, thing: Any, kinds: Any) -> bool:
        """What the user's code means by isinstance: a stand-in is a tensor where its value is one."""
        if isinstance(thing, kinds):
            return True
        return isinstance(thing, _Answers) and isinstance(self.peek(thing.node), kinds)

    def noting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which writes itself down where an argument is a stand-in."""

        def call(*args: Any, **kwargs: Any) -> Any:
            found: list[Any] = []
            fx.node.map_aggregate((args, kwargs), found.append)
            if any(isinstance(leaf, fx.Proxy) for leaf in found):
                return self.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return call

    def telling(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which is asked about a stand-in's value in its place."""

        def told(thing: Any) -> Any:
            return self.peek(thing.node) if isinstance(thing, _Answers) else thing

        return lambda *args, **kwargs: function(*map(told, args), **{name: told(thing) for name, thing in kwargs.items()})

    def create_args_for_root(self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """A stand-in for the one input; an argument with a default has that."""
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        for i, parameter in enumerate(inspect.signature(inspect.unwrap(root_fn)).parameters.values()):
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                break
            if parameter.default is not parameter.empty:
                args[i] = parameter.default
        return function, args

    def create_proxy(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *rest: Any, **named: Any) -> fx.Proxy:
        """Also of numpy's product of a shape, which calls a method that shapes do not have."""
        if (kind, target, kwargs) == ("call_method", "prod", {"axis": None, "out": None}):
            kind, target, kwargs = "call_function", math.prod, {}
        return super().create_proxy(kind, target, args, kwargs, *rest, **named)

    def create_arg(self, a: Any) -> Any:
        """Stand-ins and numbers, which nearly all arguments are, without asking first whether they are parameters: that takes long."""
        if isinstance(a, fx.Proxy):
            return a.node
        return a if type(a) in (bool, int, float, str, type(None)) else super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, nn.DataParallel):  # its forward calls the module in it
            return False
        return isinstance(m, ChannelPad) or type(m).__module__.startswith("einops.") or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.answering or m not in (self.submodule_paths or {}):  # a slice of a Sequential, or a layer made on the way: code like any other
            return forward(*args, **kwargs)
        hooks = m._forward_hooks or m._forward_pre_hooks
        if not hooks or "weight" in m.__dict__ or not self.is_leaf_module(m, self.path_of_module(m)):  # old weight norms are hooks, too
            return super().call_module(m, forward, args, kwargs)
        # The user's hooks are code like any other: they run, around a forward that is written down.
        write = super().call_module
        m.forward = lambda *a, **k: write(m, forward, a, k)
        try:
            return forward(*args, **kwargs)
        finally:
            del m.forward

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters and buffers by name; the base class looks through all of them at each access."""
        if self.answering or not isinstance(attr_val, Tensor):
            return attr_val
        if not self.paths:
            named = [*self.root.named_parameters(), *self.root.named_buffers()]
            self.paths = {id(tensor): name for name, tensor in named}
        name = self.paths.get(id(attr_val))
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = self.answer(obj.node)
        return super().to_bool(obj) if isinstance(value, Tensor) else bool(value)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        value = self.items(obj.node)
        return super().iter(obj) if not isinstance(value, (tuple, list)) else iter([cast(Any, obj)[i] for i in range(len(value))])

    def items(self, node: fx.Node) -> Any:
        """A node's value, of which the code is told how many items it has: of chunks that may change with a width, of axes not."""
        value = self.peek(node)
        return value if isinstance(value, torch.Size) else self.answer(node)

    def number(self, node: fx.Node) -> Any:
        """A node's value, where that is a number.

        Raises:
            TypeError: it is a tensor: what the code does depends on the data.
        """
        value = self.answer(node)
        if isinstance(value, Tensor):
            raise TypeError("a number of a tensor is asked for, which depends on the data")
        return value

    def answer(self, node: fx.Node) -> Any:
        """A node's value for the example, noted as asked for."""
        self.asked.add(node.name)
        return self.peek(node)

    def peek(self, node: fx.Node) -> Any:
        """A node's value for the example, of which the code is told nothing that depends on a width."""
        self.answering = True
        try:
            with torch.no_grad():
                return self.value(node)
        finally:
            self.answering = False

    def value(self, node: fx.Node) -> Any:
        todo = [node] if node not in self.values else []  # not by recursion: networks are deep
        while todo:
            needs = [n for n in todo[-1].all_input_nodes if n not in self.values]
            if needs:
                todo += needs
                continue
            last = todo.pop()
            self.values[last] = self._compute(last)
        return self.values[node]

    def _compute(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
        if node.op == "placeholder":
            if any(n.op == "placeholder" for n in self.values):
                return args[0] if args else None
            return [self.example] if str(node.target).startswith("*") else self.example
        target: Any = node.target
        if node.op == "get_attr":
            return _fetch(self.root, target)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        run: Callable[..., Any] = self.root.get_submodule(target) if node.op == "call_module" else target
        return run(*args, **kwargs)


def _fetch(root: Any, path: str) -> Any:
    for name in path.split("."):
        root = getattr(root, name)
    return root
