"""NVIDIA GPUs: the energy counter of NVML (Volta and newer), else its power reading.

Whether a GPU can be read is found by reading it: on a Jetson NVML initialises, counts one GPU and
then answers "not supported" to everything. GPUs are known by UUID. A MIG slice shares the counter
of its whole GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from lightning_edge.energy.domain import Domain, Provenance, Reading, Scope
from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.source import SourceError, SourceLost, Unavailable

COUNTER_UPDATE_S = 0.1
"""20 to 100 ms by model."""

_SCOPES = (0, 1)
"""NVML_POWER_SCOPE_GPU, then NVML_POWER_SCOPE_MODULE (Grace Hopper answers to the latter only)."""
_GONE = ("NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_RESET_REQUIRED", "NVML_ERROR_UNINITIALIZED")

Reader = Callable[[], float]

NVML = Any
"""The module ``pynvml`` once it is loaded; it comes without types."""


@dataclass
class _Gpu:
    domain: Domain
    number: int
    read: Reader
    handle: Any
    lost: str = ""


class NvmlSource:
    """Reads the energy counter or the power of each GPU.

    Args:
        host: The machine.
        nvml: The initialised binding.
        gpus: What to read.
    """

    kind: ClassVar[str] = "nvml"

    def __init__(self, host: HostEnv, nvml: NVML, gpus: Sequence[_Gpu]) -> None:
        self._clock, self._nvml, self._gpus = host.clock, nvml, gpus
        self._open = True
        self.domains: Sequence[Domain] = tuple(gpu.domain for gpu in gpus)

    @classmethod
    def probe(cls, host: HostEnv) -> NvmlSource:
        """Take a reading of every visible GPU."""
        try:
            nvml = host.nvml()
        except ImportError as error:
            raise Unavailable(f"no NVML binding: {error}", "pip install nvidia-ml-py") from None
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise Unavailable(
                f"NVML does not start: {error}",
                "install the NVIDIA driver; in a container pass --gpus all (capability utility)",
            ) from None
        gpus: list[_Gpu] = []
        refused: list[str] = []
        try:
            found = visible_gpus(nvml, host.environ.get("CUDA_VISIBLE_DEVICES"))
            for number, uuid, handle in found:
                name = text_of(nvml.nvmlDeviceGetName(handle))
                try:
                    gpus.append(_open(nvml, handle, number, uuid, name))
                except Unavailable as error:
                    refused.append(error.reason)
            if not gpus:
                raise Unavailable(
                    "; ".join(refused) or "no NVIDIA GPU is visible to this process",
                    "on a Jetson the board's own monitors are read instead"
                    if host.is_tegra
                    else "",
                )
        except nvml.NVMLError as error:
            raise Unavailable(f"NVML: {error}") from None
        finally:
            if not gpus:
                nvml.nvmlShutdown()
        return cls(host, nvml, gpus)

    def read(self) -> Reading:
        """Cumulative joules or watts of each GPU, and its temperature."""
        now_s = self._clock()
        energy_j: dict[str, float] = {}
        power_w: dict[str, float] = {}
        aux: dict[str, float] = {}
        problems = []
        for gpu in self._gpus:
            if gpu.lost:
                continue
            try:
                value = gpu.read()
            except self._nvml.NVMLError as error:
                problems.append(f"{gpu.domain.name}: {error}")
                if error.value in {getattr(self._nvml, name) for name in _GONE}:
                    gpu.lost = str(error)
                continue
            counted = gpu.domain.provenance is Provenance.COUNTER
            (energy_j if counted else power_w)[gpu.domain.id] = value
            with suppress(self._nvml.NVMLError):
                celsius = self._nvml.nvmlDeviceGetTemperature(gpu.handle, 0)
                aux[f"gpu:{gpu.number}:temp_c"] = float(celsius)
        if all(gpu.lost for gpu in self._gpus):
            raise SourceLost("; ".join(f"{gpu.domain.name}: {gpu.lost}" for gpu in self._gpus))
        if not energy_j and not power_w:
            raise SourceError("; ".join(problems))
        return Reading(now_s, energy_j=energy_j, power_w=power_w, aux=aux)

    def close(self) -> None:
        """Leave NVML; it counts its users."""
        if self._open:
            self._open = False
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()


def visible_gpus(nvml: NVML, variable: str | None) -> list[tuple[int, str, Any]]:
    """Number, UUID and handle of the GPUs that CUDA_VISIBLE_DEVICES lets through.

    Numbers there follow the PCI order here. CUDA's own default, fastest first, gives the same for
    equal GPUs; a machine with unlike GPUs is told apart exactly by UUIDs in that variable.
    """
    handles = {}
    for number in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(number)
        handles[number] = (number, text_of(nvml.nvmlDeviceGetUUID(handle)), handle)
    if variable is None:
        return list(handles.values())
    chosen: dict[int, tuple[int, str, Any]] = {}
    for entry in (part.strip() for part in variable.split(",") if part.strip()):
        match = _match(nvml, handles, entry)
        if match is None:
            break  # as CUDA does: what follows the first invalid entry is invisible
        chosen[match] = handles[match]
    return list(chosen.values())


def _match(nvml: NVML, handles: dict[int, tuple[int, str, Any]], entry: str) -> int | None:
    if entry.isdigit():
        return int(entry) if int(entry) in handles else None
    if entry.startswith("MIG-"):
        try:
            slice_handle = nvml.nvmlDeviceGetHandleByUUID(entry)
            parent = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(slice_handle)
            entry = text_of(nvml.nvmlDeviceGetUUID(parent))
        except nvml.NVMLError:
            return None
    found = [n for n, (_, uuid, _) in handles.items() if uuid.startswith(entry)]
    return found[0] if len(found) == 1 else None


def _open(nvml: NVML, handle: Any, number: int, uuid: str, name: str) -> _Gpu:
    """The best reading that this GPU really gives."""
    tried: list[str] = []
    for label, provenance, read in ways_to_read(nvml, handle):
        try:
            read()
        except nvml.NVMLError as error:
            tried.append(f"{label}: {error}")
            continue
        shared = " (whole GPU, shared by its MIG slices)" if _mig(nvml, handle) else ""
        domain = Domain(
            f"gpu:{uuid}",
            name + shared,
            Scope.GPU,
            provenance,
            "nvml",
            update_period_s=COUNTER_UPDATE_S,
        )
        return _Gpu(domain, number, read, handle)
    raise Unavailable(f"{name} tells no energy and no power ({'; '.join(tried)})")


def ways_to_read(nvml: NVML, handle: Any) -> list[tuple[str, Provenance, Reader]]:
    """Ways to read a GPU, best first.

    Joules by counter, then watts (an average where the driver keeps one).
    """

    def field(number: int, scope: int, unit: float) -> Reader:
        def read() -> float:
            value = nvml.nvmlDeviceGetFieldValues(handle, [(number, scope)])[0]
            if value.nvmlReturn != 0:  # the call succeeds, the field may not
                raise nvml.NVMLError(value.nvmlReturn)
            raw = value.value.ullVal if value.valueType in (2, 3) else value.value.uiVal
            return float(raw) * unit

        return read

    counter, sampled = Provenance.COUNTER, Provenance.SAMPLED
    ways: list[tuple[str, Provenance, Reader]] = [
        ("energy", counter, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)
    ]
    for scope in _SCOPES:
        ways.append((f"energy field, scope {scope}", counter, field(83, scope, 1e-3)))
    ways.append(("power", sampled, lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3))
    for scope in _SCOPES:
        for number, label in ((185, "average"), (186, "instant")):
            ways.append(
                (f"{label} power field, scope {scope}", sampled, field(number, scope, 1e-3))
            )
    return ways


def _mig(nvml: NVML, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except (nvml.NVMLError, AttributeError):
        return False


def text_of(value: str | bytes) -> str:
    """What NVML said; old bindings give bytes."""
    return value.decode() if isinstance(value, bytes) else value
