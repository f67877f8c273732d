"""Module buffers (BatchNorm's statistics): what a forward pass changed is noticed, and can be put back."""

import functools
import secrets
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from .. import interrupt
from ..errors import InvalidSetting
from ..exact.digest import raw_bytes

Values = dict[str, torch.Tensor | None]
"""Buffers by name; None where there is none (yet)."""

_LARGE = 1 << 16


@dataclass
class _Kept:
    """A copy, and the buffer that it was made of as it was then. Copies are never changed in place, and shared."""

    copy: torch.Tensor | None
    of: "weakref.ref[torch.Tensor] | None" = None
    version: int = -1

    @classmethod
    def now(cls, b: torch.Tensor | None, copy: torch.Tensor | None = None) -> "_Kept":
        """A copy of `b`; or `copy`, which is one."""
        if b is None:
            return cls(None)
        return cls(b.detach().clone() if copy is None else copy, weakref.ref(b), b._version)

    def differs(self, b: torch.Tensor | None, full: bool) -> bool:
        """Whether `b` has other bits. A large one, without `full`, only if it is another tensor or was written to."""
        if b is None or self.copy is None:
            return b is not self.copy
        written = self.of is None or self.of() is not b or self.version != b._version
        return (full or written or b.numel() <= _LARGE) and not _same(b, self.copy)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and raw_bytes(a) == raw_bytes(b)


@dataclass
class _Watched:
    module: "weakref.ref[nn.Module]"
    kept: dict[str, _Kept] = field(default_factory=dict)

    def each(self) -> Iterator[tuple[str, torch.Tensor | None, _Kept]]:
        """Attribute, buffer and copy, also of those that are gone or were not there at the last look."""
        module = self.module()
        if module is not None:
            for attribute in {**self.kept, **module._buffers}:
                yield attribute, module._buffers.get(attribute), self.kept.get(attribute, _Kept(None))


_watching: list["Buffers"] = []
_ran_compiled = False


def _look(module: nn.Module, _inputs: Any) -> None:
    global _ran_compiled
    if torch.compiler.is_compiling():  # all that is left of it in a compiled model is this assignment
        _ran_compiled = True
    elif not isinstance(module, GraphModule) or any(True for _ in module.buffers()):  # most are a compiler's
        for buffers in _watching:
            buffers.see(module)


@functools.cache
def _hook() -> RemovableHandle:
    """The hook under `watching`. It stays: each time it came or went, compiled models would be compiled anew."""
    # torch says that it also runs for the module that torch.compile makes, as it should.
    warnings.filterwarnings("ignore", r"Using `torch\.compile\(module\)` when there are global hooks", UserWarning)
    return register_module_forward_pre_hook(_look)


def uncompiled(name: str) -> str:
    """The name of a parameter or a module without the layer that torch.compile puts around a module."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


class Snapshot(dict[str, tuple[torch.Tensor, torch.Tensor | None]]):
    """Present values and copies of the buffers that are there, by name.

    Attributes:
        paths: modules that it covers; a buffer of theirs that it does not name was not there.
        edited: copies of the buffers that had changed since the last look.
    """

    paths: frozenset[str]
    edited: Values


class Buffers:
    """Copies of module buffers, so that what a forward pass changed is noticed and can be put back.

    A buffer's name is its path below the model; if none is named, below the module that is called first. Modules
    outside it get names that no other `Buffers` knows: which of them is which could only be guessed there.

    Buffers of up to 65,536 elements are compared bit for bit (batch norm's kernel moves no version counter);
    larger ones (masks, tables) only when they were written to.
    """

    def __init__(self) -> None:
        self._roots: dict[str, weakref.ref[nn.Module]] = {}
        self._watched: dict[str, _Watched] = {}  # by path of the module
        self._seen: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        _hook()
        self.expected: Values = {}  # values for buffers that are not known yet
        self.found: Values = {}  # what those were when they were seen

    # -- names ---------------------------------------------------------------------------------------

    @property
    def model(self) -> nn.Module | None:
        """The module that names are paths below."""
        return self._roots[""]() if "" in self._roots else None

    def name(self, model: nn.Module) -> None:
        """Name buffers by their paths below this model from now on."""
        self._roots, self._watched, self._seen = {}, {}, weakref.WeakSet()
        self.see(model, "")

    def see(self, module: nn.Module, path: str | None = None) -> None:
        """Keep copies of the buffers of a module and of all below it; `path`: its own below the model, if known."""
        if module in self._seen:
            return
        with interrupt.critical():  # called in the user's passes
            if path is None:
                for known, root in self._roots.items():
                    self._walk(root(), known)  # it may have been added to a model since
                path = f"{type(module).__name__}#{secrets.token_hex(4)}" if self._roots else ""
            if module not in self._seen:
                self._roots[path] = weakref.ref(module)
                self._walk(module, path)

    def _walk(self, root: nn.Module | None, path: str) -> None:
        for name, module in root.named_modules(prefix=path) if root is not None else ():
            if module not in self._seen:
                self._seen.add(module)
                kept = {attribute: _Kept.now(b) for attribute, b in module._buffers.items()}
                self._watched[uncompiled(name)] = _Watched(weakref.ref(module), kept)
        known = {name: value for name, value in self.expected.items() if name in self}
        self.found |= {name: self.copies().get(name) for name in known}
        self.expected = {name: value for name, value in self.expected.items() if name not in known}
        self.put(known)

    def __contains__(self, name: str) -> bool:
        watched = self._watched.get(name.rpartition(".")[0])
        return watched is not None and watched.module() is not None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See every module whose forward runs inside, before it runs; of a compiled one, itself and all below it.

        Raises:
            InvalidSetting: something compiled ran, and no module was seen.
        """
        global _ran_compiled
        _ran_compiled = False
        _watching.append(self)
        try:
            yield
        finally:
            _watching.remove(self)
        if _ran_compiled and not self._roots:
            raise InvalidSetting(
                "no module was seen: model.compile(), or a compiled function that calls it, hides it and its buffers.",
                "run all passes inside `with lo.replay(optimizer, model):`.",
            )

    def forget(self) -> None:
        """Begin anew, with other names."""
        self.__init__()

    # -- values --------------------------------------------------------------------------------------

    def _each(self) -> Iterator[tuple[str, torch.Tensor | None, _Kept]]:
        """Name, buffer and copy, also of buffers that are gone, or were not there at the last look."""
        for path, watched in self._watched.items():
            module = watched.module()
            if module is not None and (watched.kept or module._buffers):
                for attribute in {**watched.kept, **module._buffers}:
                    name = f"{path}.{attribute}" if path else attribute
                    yield name, module._buffers.get(attribute), watched.kept.get(attribute, _Kept(None))

    def _keep(self, name: str, kept: _Kept) -> None:
        path, _, attribute = name.rpartition(".")
        self._watched[path].kept[attribute] = kept

    def edited(self, full: bool = False) -> Values:
        """Values before, by name, of the buffers whose bits changed since the last look.

        `full` compares the large ones too.
        """
        return {name: kept.copy for name, b, kept in self._each() if kept.differs(b, full)}

    def changed(self, full: bool = False) -> Values:
        """What `edited` says; and the present values are the ones to compare with from now on."""
        different = [(name, b, kept) for name, b, kept in self._each() if kept.differs(b, full)]
        for name, b, _ in different:
            self._keep(name, _Kept.now(b))
        return {name: kept.copy for name, _, kept in different}

    def copies(self) -> Values:
        """The values at the last look, by name."""
        return {name: kept.copy for name, _, kept in self._each()}

    def present(self) -> Values:
        """The buffers themselves, by name."""
        return {name: b for name, b, _ in self._each()}

    def values(self) -> dict[str, torch.Tensor]:
        """The values at the last look of the buffers that were there, by name."""
        return {name: copy for name, copy in self.copies().items() if copy is not None}

    def put(self, values: Mapping[str, torch.Tensor | None]) -> Values:
        """Set buffers to values; the copies follow. Gives the values whose buffers are not known.

        A buffer is written to where it has the value's shape and dtype, and replaced where not.
        """
        unknown: Values = {}
        for name, value in values.items():
            if name not in self:
                unknown[name] = value
                continue
            path, _, attribute = name.rpartition(".")
            buffers = self._watched[path].module()._buffers
            b = buffers.get(attribute)
            if value is None:
                buffers[attribute] = b = None
            elif b is None or b.shape != value.shape or b.dtype != value.dtype:
                buffers[attribute] = b = value.to(value.device if b is None else b.device, copy=True)
            elif not _same(b, value):
                with torch.no_grad():
                    b.copy_(value)
            self._keep(name, _Kept.now(b, value))
        return unknown

    def snapshot(self) -> Snapshot:
        """Present values and copies, for `restore`."""
        each = list(self._each())
        taken = Snapshot({name: (b.detach().clone(), kept.copy) for name, b, kept in each if b is not None})
        taken.paths, taken.edited = frozenset(self._watched), self.edited()
        return taken

    def restore(self, snapshot: Snapshot) -> None:
        """Back to a snapshot: an edit that was not looked at then is noticed later all the same."""
        covered = [name for name, *_ in self._each() if name.rpartition(".")[0] in snapshot.paths]
        self.put({name: snapshot.get(name, (None,))[0] for name in covered})
        for name, copy in snapshot.edited.items():
            self._keep(name, _Kept(copy))

    # -- copies of the optimizer ---------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> "Buffers":
        """The copies of the modules, as far as they were copied before the optimizer, under the same names."""
        twin = Buffers()
        twin._roots = {path: twin_ref for path, ref in self._roots.items() if (twin_ref := _copied(ref, memo))}
        for path, watched in self._watched.items():
            ref = _copied(watched.module, memo)
            if ref is not None:
                twin._watched[path] = _Watched(ref, {k: _Kept(kept.copy) for k, kept in watched.kept.items()})
                twin._seen.add(ref())
        return twin

    def __reduce__(self) -> tuple[type["Buffers"], tuple[()]]:
        return Buffers, ()  # a pickled optimizer belongs to another process, whose modules are seen afresh


def _copied(ref: "weakref.ref[nn.Module]", memo: dict[int, Any]) -> "weakref.ref[nn.Module] | None":
    """Of a module, its copy."""
    module = ref()
    copy = None if module is None else memo.get(id(module))
    return None if copy is None else weakref.ref(copy)
