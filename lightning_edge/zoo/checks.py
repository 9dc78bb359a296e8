"""Sizes that users give, checked before torch sees them."""

from __future__ import annotations

from lightning_edge.errors import UnsupportedError

__all__: list[str] = []


def check_sizes(node: str, **sizes: int) -> None:
    """Refuse sizes below 1, all of them at once.

    Args:
        node: Where they are set, "model" or "data".
        **sizes: By name.

    Raises:
        UnsupportedError: Naming each.
    """
    wrong = [f"{node}.{name}={value}" for name, value in sizes.items() if value < 1]
    if wrong:
        are = "is not a whole number" if len(wrong) == 1 else "are not whole numbers"
        raise UnsupportedError(f"{', '.join(wrong)} {are} from 1 up")


def check_heads(width: int, heads: int) -> None:
    """Refuse widths that attention heads cannot share.

    Raises:
        UnsupportedError: With widths that would do.
    """
    step = 2 * heads
    if width % step:
        near = sorted({max(width // step, 1) * step, (width // step + 1) * step})
        raise UnsupportedError(
            f"model.width={width} cannot be shared by model.heads={heads}, each with an even part:"
            f" set model.width to {' or '.join(map(str, near))}"
        )
