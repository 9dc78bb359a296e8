"""A recording of another machine, played back on this one: sources cannot tell the difference."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from lightning_edge.energy.domain import Domain, Reading
from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.meter import EnergyMeter
from lightning_edge.energy.record import FORMAT, MAX_TEXT
from lightning_edge.energy.report import EnergyReport
from lightning_edge.energy.select import Wanted
from lightning_edge.energy.source import SourceError
from lightning_edge.errors import EnergyError

FROM_FILES = ("jetson", "rapl", "hwmon", "raspberry_pi", "battery", "model")
"""Sources that find all they read in a recording's tree; of others the readings are played."""
MAX_MEMBERS = 20_000
MAX_MEMBER_BYTES = 256 * 2**20


class Recording:
    """A tarball of ``record``, unpacked, standing at its first frame.

    Args:
        archive: The tarball.
        folder: An empty directory for the tree; the caller removes it.

    Raises:
        EnergyError: If it is no recording.
    """

    def __init__(self, archive: Path, folder: Path) -> None:
        self._folder = folder
        self.now_s = 0.0
        texts = _texts(archive)
        try:
            self.meta: Mapping[str, Any] = json.loads(texts["meta.json"])
            self._frames = [json.loads(line) for line in texts["frames.jsonl"].splitlines()]
            self.readings = [json.loads(line) for line in texts["readings.jsonl"].splitlines()]
            if self.meta["format"] != FORMAT:
                raise EnergyError(f"{archive} has format {self.meta['format']}, not {FORMAT}")
        except (KeyError, ValueError, TypeError) as error:
            raise EnergyError(f"{archive} is no recording of energy readings: {error}") from None
        self._write({n.removeprefix("tree"): t for n, t in texts.items() if n.startswith("tree/")})
        for name in self.meta.get("unreadable", {}):
            _inside(folder, name).mkdir(parents=True, exist_ok=True)  # reading it fails, too
        self._commands: dict[str, str] = {}
        self._next = 0
        self.advance()

    @property
    def host(self) -> HostEnv:
        """The recorded machine."""
        return HostEnv(
            sysroot=self._folder,
            environ=self.meta.get("environ", {}),
            run=self._run,
            clock=lambda: self.now_s,
            nvml=_no_module,
            jtop=_no_module,
            machine=str(self.meta["architecture"]),
        )

    def advance(self) -> bool:
        """Go to the next frame; False after the last."""
        if self._next >= len(self._frames):
            return False
        frame = self._frames[self._next]
        self._next += 1
        self._write(frame["files"])
        self._commands = frame["commands"]
        self.now_s = float(frame["t_s"])
        return True

    def sources(self) -> list[Wanted]:
        """Sources for the meter: by name where files were recorded, else the recorded readings."""
        return [
            kind
            if kind in FROM_FILES
            else RecordedSource(self, kind, [Domain.from_mapping(d) for d in domains])
            for kind, domains in self.meta["domains"].items()
        ]

    def play(self) -> EnergyReport:
        """Run a meter over the whole recording."""
        with EnergyMeter(self.sources(), host=self.host, background=False) as meter:
            begin_s = meter.read()
            while self.advance():
                meter.read()
            return meter.report(begin_s, self.now_s, "replay")

    def _run(self, command: Sequence[str], timeout_s: float) -> str:
        try:
            return self._commands[" ".join(command)]
        except KeyError:
            raise subprocess.CalledProcessError(127, list(command)) from None

    def _write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = _inside(self._folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            # In place: sources keep their files open, as they do in /sys.
            with path.open("r+" if path.exists() else "w") as file:
                file.write(text)
                file.truncate()


class RecordedSource:
    """Gives recorded readings of a source that reads no files, such as NVML.

    Args:
        recording: Where they are.
        kind: Of which source.
        domains: Its domains.
    """

    kind: ClassVar[str] = "recorded"

    def __init__(self, recording: Recording, kind: str, domains: Sequence[Domain]) -> None:
        self.domains = tuple(domains)
        self._recording = recording
        self._readings = [r for r in recording.readings if r["kind"] == kind]

    @classmethod
    def probe(cls, host: HostEnv) -> RecordedSource:
        """Recorded sources are handed to a meter ready-made."""
        raise EnergyError("a recorded source comes from a Recording")

    def read(self) -> Reading:
        """The newest reading up to now."""
        now_s = self._recording.now_s
        past = [r for r in self._readings if r["t_s"] <= now_s + 1e-3]
        if not past or "error" in past[-1]:
            raise SourceError(past[-1]["error"] if past else "nothing was recorded yet")
        return Reading(
            now_s, past[-1]["energy_j"], past[-1]["power_w"], frozenset(), past[-1]["aux"]
        )

    def close(self) -> None:
        """Nothing is held open."""


def _texts(archive: Path) -> dict[str, str]:
    """Names and contents of a tarball's plain files; nothing else is looked at."""
    found: dict[str, str] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for number, member in enumerate(tar):
                if number >= MAX_MEMBERS or member.size > MAX_MEMBER_BYTES:
                    raise EnergyError(f"{archive} is too large for a recording")
                file = tar.extractfile(member) if member.isfile() else None
                if file is not None:
                    found[member.name] = file.read().decode(errors="replace")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise EnergyError(f"{archive} is no recording of energy readings: {error}") from None
    return found


def _inside(folder: Path, name: str) -> Path:
    """The file `name` of the recorded machine below `folder`, and never outside."""
    parts = PurePosixPath(name).parts
    if ".." in parts or len(name) > MAX_TEXT:
        raise EnergyError(f"the recording names a file outside of its tree: {name!r}")
    return folder.joinpath(*(part for part in parts if part != "/"))


def _no_module() -> Any:
    raise ImportError("not on a replayed machine")
