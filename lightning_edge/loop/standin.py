"""A stand-in for a method of one object, that does not survive copying.

Deep copies and pickles of a module (averaged weights, `metric.clone()`, `torch.save(module)`) must
have the plain method again: the stand-in leads to this device's transport.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

__all__: list[str] = []


class StandIn:
    """Set as an instance attribute, hides the method of the same name.

    Args:
        owner: The object whose attribute this becomes.
        name: The method.
        call: Called in its place, without the owner.
    """

    def __init__(self, owner: object, name: str, call: Callable[..., Any]) -> None:
        self._owner, self._name, self._call = owner, name, call
        # For questions about the signature, and whether the user has overridden the method.
        self.__wrapped__ = MethodType(getattr(type(owner), name), owner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> MethodType:
        owner = memo.get(id(self._owner), self._owner)
        return MethodType(getattr(type(owner), self._name), owner)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._owner, self._name)  # asked before the copy has instance attributes
