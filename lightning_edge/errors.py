"""Every error a user can meet, in one place and without imports.

All of them derive from `EdgeError`, so `except EdgeError` catches what this package refuses and
nothing else. Those that stem from a wrong value are also a `ValueError`, those that stem from the
outside world also a `RuntimeError`.
"""


class EdgeError(Exception):
    """Base of all errors raised on purpose by lightning-edge."""


class _ListedError(EdgeError, ValueError):
    """Something was given that cannot be used; the message lists every problem.

    Args:
        problems: One sentence per problem, each starting with what to change. A single text counts
            as one problem.
        source: Where the thing came from, such as a file name, if that is known.
    """

    _what = "what was given"

    def __init__(
        self, problems: str | list[str] | tuple[str, ...], source: str | None = None
    ) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        self.source = source
        where = self._what if source is None else f"{self._what} in {source}"
        if len(self.problems) == 1:
            text = f"{where} has a problem: {self.problems[0]}"
        else:
            lines = [f"\n  {number}. {line}" for number, line in enumerate(self.problems, start=1)]
            text = f"{where} has {len(self.problems)} problems:{''.join(lines)}"
        super().__init__(text)

    def __reduce__(self) -> tuple[type, tuple[tuple[str, ...], str | None]]:
        # The default would rebuild from the finished text, and errors travel between processes.
        return type(self), (self.problems, self.source)


class PlanError(_ListedError):
    """A plan, or what it was to be made from, cannot be used; the message lists every problem."""

    _what = "the plan"


class ScheduleError(EdgeError):
    """The instruction lists of a plan cannot run, or a text is not an instruction list."""


class SplitError(EdgeError, ValueError):
    """The model cannot be divided as the plan asks."""


class TransportError(EdgeError, RuntimeError):
    """Devices could not exchange something."""


class TransportTimeout(TransportError):  # noqa: N818 - reads as what it is
    """A device waited too long; the message names for whom, for what and how many seconds."""


class PeerError(TransportError):
    """Another device failed first; the message carries its own words."""


class ConfigMismatchError(EdgeError):
    """Devices that train together were started with different settings."""


class UnsupportedError(EdgeError):
    """A combination that lightning-edge knows and does not support."""


class EnergyError(EdgeError):
    """Energy cannot be measured as asked."""


class TestbedError(EdgeError):
    """The emulated testbed of unequal devices cannot be built or run."""

    __test__ = False  # pytest takes classes called Test* for tests


class DataError(EdgeError, ValueError):
    """A batch or a DataLoader cannot be shared among the devices."""


class CheckpointError(EdgeError):
    """A checkpoint cannot be written, read or matched to this model."""


class ProfileError(_ListedError):
    """A profile is malformed, incomplete, or belongs to another model, device or software."""

    _what = "the profile"
