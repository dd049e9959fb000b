"""The user's map, held still during one solve.

A solver expects a map to leave its argument alone, to return memory of its own, and to give the same value for the same
state. Real maps update in place, return the same buffer each time, draw dropout masks, cache what their first call
computed. `HeldMap` stands between such a map and the solver.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

# Whether hooks or functional transforms stand around a tensor or a call; there is no public way to ask.
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch._C._functorch import peek_interpreter_stack
from torch.autograd.graph import saved_tensors_hooks

from equilibria.devices import own_generator
from equilibria.solvers import Map, State
from equilibria.solvers.state import detach, leaves, leaves_as, rebuild

# Evaluations that are given copies, and whose values are copied: maps mostly show their habits in the first two.
INSPECTED = 2


class HeldMap:
    """A map as a solver wants it, for one solve and for recomputation in its backward pass.

    - A map that writes to its argument is given a copy, from the first evaluation on.
    - Where a map returns a buffer that it uses again, copies are returned.
    - Random numbers are drawn once: every evaluation starts from the generator state of the first, and together they
      leave the generators as one does. So dropout has one mask per solve.
    - Caches have a graph: the first evaluation runs with gradients on where `with_graph` asks for it, even inside
      `no_grad`. Otherwise the weights that `torch.nn.utils.parametrize.cached` keeps, or autocast's casts, would have
      none, and the gradient would not reach what they were computed from.

    The first two evaluations are inspected thoroughly. Later ones cost about a microsecond more.

    Args:
        f: the map.
        with_graph: whether the tracked evaluation of this solve will need a graph of what `f` caches.

    Raises:
        RuntimeError: from an evaluation that wrote to its argument or reused memory as the first two did not, so that
            earlier values are lost.
        ValueError: from an evaluation that returned another structure, or complex values for a real state.
    """

    def __init__(self, f: Map, with_graph: bool) -> None:
        self._f, self._with_graph = f, with_graph
        self._calls = 0
        self._writes = self._reuses = False
        self._kept: list[Tensor] = []  # alive, so that their memory is not handed out again
        self._addresses: set[int] = set()
        self._random: list[tuple[torch.Generator, Tensor]] = []

    def __call__(self, z: State) -> State:
        """`f(z)`."""
        self._calls += 1
        if self._calls <= INSPECTED:
            return self._inspect(z)
        if self._writes:
            value = self._replay(_copied(z))
        else:
            alone = isinstance(z, Tensor)
            before = _version(z) if alone else versions(leaves(z))
            value = self._replay(z) if self._random else self._f(z)
            if (_version(z) if alone else versions(leaves(z))) != before:
                raise RuntimeError(
                    f"the map wrote to its argument in evaluation {self._calls} and not before; "
                    "let it write to a copy (`z = z.clone()`)"
                )
        if self._reuses:
            return _copied(value)
        if isinstance(value, Tensor) and _storage(value) not in self._addresses:
            return value
        if self._addresses:
            parts = (value,) if isinstance(value, Tensor) else tuple(leaves_as(z, value))
            for leaf in parts:
                if _storage(leaf) in self._addresses:
                    return self._found_reuse(value, parts, _parts(z))
        return value

    def close(self) -> None:
        """Release the first values, after the solve; recomputation in the backward pass still works."""
        self._kept.clear()
        self._addresses.clear()

    def steady(self, z: State, tolerance: float) -> bool:
        """Whether two evaluations at `z` agree to `tolerance`, or rounding, relative to their size."""
        with torch.no_grad():
            first = [leaf.clone() for leaf in leaves_as(z, self(detach(z)))]
            second = list(leaves_as(z, self(detach(z))))
        # A hundred roundings: sums may be taken in another order.
        return not any(
            bool(
                torch.linalg.vector_norm(a - b)
                > max(tolerance, 100.0 * torch.finfo(a.dtype).eps) * torch.linalg.vector_norm(a)
            )
            for a, b in zip(first, second, strict=True)
        )

    def _inspect(self, z: State) -> State:
        """One of the first evaluations: on a copy, so that a write to it shows."""
        if self._calls == 1 and self._with_graph and not torch.is_grad_enabled() and peek_interpreter_stack() is None:
            given, value = self._tracked(z)
        else:
            given = _copied(z)
            arguments = _parts(given)
            before = versions(arguments)
            value = self._draw(given) if self._calls == 1 else self._replay(given)
            self._writes |= versions(arguments) != before
        arguments, raw = _parts(given), tuple(leaves_as(z, value))
        _check_kind(arguments, raw)
        own = {_storage(leaf) for leaf in arguments}
        for leaf in raw:
            address = _storage(leaf)
            if address and address not in own:
                self._reuses |= address in self._addresses
                self._kept.append(leaf.detach())
        self._addresses = {_storage(leaf) for leaf in self._kept}
        return _copied(value)

    def _tracked(self, z: State) -> tuple[State, State]:
        """The argument and the value, cut from the graph, of an evaluation with gradients on."""
        given = rebuild(z, (_copied_leaf(leaf.detach()).requires_grad_() for leaf in leaves(z)))
        with torch.enable_grad(), _unseen():
            try:
                value = self._draw(given)
            except RuntimeError as error:
                if "leaf Variable that requires grad" not in str(error):
                    raise
                self._writes = True
                value = self._draw(_copied(given))
        return given, rebuild(z, (leaf.detach() for leaf in leaves_as(z, value)))

    def _found_reuse(self, value: State, parts: Sequence[Tensor], arguments: Sequence[Tensor]) -> State:
        """The value of a map that returned memory it had returned before, or its argument."""
        own = {_storage(leaf) for leaf in arguments}
        if all(_storage(leaf) not in self._addresses or _storage(leaf) in own for leaf in parts):
            return value
        if self._calls > INSPECTED + 1:
            raise RuntimeError(
                f"evaluation {self._calls} of the map returned memory that an earlier one had returned, whose value "
                "is lost; let the map return a copy (`.clone()`)"
            )
        self._reuses = True
        return _copied(value)

    def _draw(self, z: State) -> State:
        """The first evaluation; remembers the state of the generators that it advanced."""
        before = [(generator, generator.get_state()) for generator in _generators(next(leaves(z)).device)]
        try:
            value = self._f(z)
        except RuntimeError:
            for generator, state in before:
                generator.set_state(state)
            raise
        self._random = [(own, state) for own, state in before if not torch.equal(state, own.get_state())]
        return value

    def _replay(self, z: State) -> State:
        """An evaluation with the random numbers of the first, which leaves the generators as they are."""
        if not self._random:
            return self._f(z)
        now = [(generator, generator.get_state()) for generator, _ in self._random]
        try:
            for generator, state in self._random:
                generator.set_state(state)
            return self._f(z)
        finally:
            for generator, state in now:
                generator.set_state(state)


def _copied(state: State) -> State:
    """The same values in new memory, with their graph; of inference tensors a copy that counts its versions."""
    if isinstance(state, Tensor):
        return _copied_leaf(state)
    return rebuild(state, (_copied_leaf(leaf) for leaf in leaves(state)))


def _copied_leaf(leaf: Tensor) -> Tensor:
    if not leaf.is_inference():
        return leaf.clone()
    with torch.inference_mode(False):
        return leaf.clone()


def _parts(state: State) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else tuple(leaves(state))


def versions(tensors: Iterable[Tensor]) -> list[int]:
    """How often each was written to; 0 for inference tensors, which do not count."""
    return [_version(tensor) for tensor in tensors]


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _storage(leaf: Tensor) -> int:
    """Where the storage of a tensor begins; 0 for subclasses and transformed tensors, which have none of their own."""
    if type(leaf) is not Tensor and type(leaf) is not nn.Parameter:
        return 0
    try:
        return leaf.untyped_storage().data_ptr()
    except RuntimeError:
        return 0


def _generators(device: torch.device) -> list[torch.Generator]:
    """The default generators a map on `device` draws from; not that of a GPU while a graph is recorded."""
    recording = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    own = None if recording else own_generator(device)
    return [torch.default_generator] if own is None else [torch.default_generator, own]


def _unseen() -> AbstractContextManager[object]:
    """Hides what a discarded graph saves from hooks that count, offload or recompute it."""
    if _top_saved_tensors_default_hooks(False) is None:
        return nullcontext()
    return saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)


def _check_kind(arguments: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for leaf, value in zip(arguments, values, strict=True):
        if value.is_complex() and not leaf.is_complex():
            raise ValueError(
                f"the map returned {value.dtype} for a state of {leaf.dtype}; start from a complex state, "
                "or return torch.view_as_real of the value"
            )
