"""`Testbed`: unequal devices on one Linux machine, for as long as a `with` block lasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from lightning_edge.errors import TestbedError
from lightning_edge.testbed import launch, slots
from lightning_edge.testbed.cgroup_mounts import find_cgroups
from lightning_edge.testbed.faults import Fault, check_faults
from lightning_edge.testbed.machine import Machine, missing_requirements, this_machine
from lightning_edge.testbed.network import Network
from lightning_edge.testbed.output import Printer
from lightning_edge.testbed.resolve import Pool, resolve
from lightning_edge.testbed.result import RunResult
from lightning_edge.testbed.run import Run, Settings
from lightning_edge.testbed.slots import Slot
from lightning_edge.testbed.spec import DeviceSpec, PoolSpec, raise_all

__all__: list[str] = []


class Testbed:
    """A pool of emulated devices: a network namespace, a shaped link and a cgroup each.

        with Testbed([DeviceSpec(cpu=0.6, link_mbit=100), DeviceSpec(cpu=0.2)]) as bed:
            result = bed.run([sys.executable, "train.py"], timeout_s=60, faults=["kill:device1@5s"])

    Everything is made when the block is entered and removed when it is left. What a killed process
    could not remove, the next testbed on the machine removes.

    Args:
        devices: The devices in the order of their ranks, or a `PoolSpec` with all there is to say.

    Raises:
        TestbedError: If the devices are not possible on this machine, or if it cannot run a testbed
            at all (it takes Linux and root); names everything that is wrong.
    """

    __test__ = False  # pytest takes classes called Test* for tests

    def __init__(self, devices: Sequence[DeviceSpec] | PoolSpec) -> None:
        raise_all(missing_requirements(), "the testbed")
        spec = devices if isinstance(devices, PoolSpec) else PoolSpec(tuple(devices))
        self.pool: Pool = resolve(spec, _machine(spec))
        self._slot: Slot | None = None
        self._network: Network | None = None
        self._runs = 0

    def __enter__(self) -> Testbed:
        """Build the network.

        Raises:
            TestbedError: If the kernel lacks something; says what to leave out.
        """
        if self._slot is not None:
            raise TestbedError("this testbed is already built; use one `with` block")
        self._slot = slots.claim()
        try:
            (self._slot.folder / "hosts").write_text(launch.hosts_file(self._slot, self.pool))
            self._network = Network(self._slot, self.pool)
            self._network.build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove everything."""
        self.close()

    def close(self) -> None:
        """Remove everything; harmless if there is nothing."""
        if self._slot is not None:
            slots.release(self._slot)
            self._slot = None

    def run(
        self,
        command: Sequence[str],
        *,
        timeout_s: float | None = None,
        faults: Sequence[Fault | str] = (),
        env: Mapping[str, str] | None = None,
        printer: Printer | None = None,
        grace_s: float = 90.0,
        free_start: bool = False,
    ) -> RunResult:
        """Run a command once on every device, as one rank each, and wait until all have ended.

        The processes find torchrun's environment, and die with the thread that called this.

        Args:
            command: The program and its arguments, the same on every device.
            timeout_s: Seconds after which all devices are stopped; None waits for ever.
            faults: What happens to the devices meanwhile, such as `kill:device1@5s`.
            env: Further environment variables for all devices.
            printer: Called with a device's name and each line it prints; None prints nothing (the
                last lines are in the result).
            grace_s: Seconds that the others have to notice that a device has failed, before they
                are stopped too.
            free_start: Leave CPU quotas out until a device announces something in its step file
                (`ready`, or its first training step), so that importing and setting up a framework
                does not take minutes. What is announced late is measured too fast.

        Returns:
            What every device did; `check()` on it raises unless all ended well.

        Raises:
            TestbedError: If the testbed is not built, or if a fault is not possible.
        """
        if self._slot is None or self._network is None:
            raise TestbedError("the testbed is not built: use it as `with Testbed(...) as bed:`")
        if not command:
            raise TestbedError("there is no command to run")
        found = tuple(Fault.parse(f) if isinstance(f, str) else f for f in faults)
        raise_all(check_faults(found, [d.name for d in self.pool.devices]), "the run")
        settings = Settings(timeout_s, grace_s, found, dict(env or {}), printer, free_start)
        number, self._runs = self._runs, self._runs + 1
        run = Run(self._slot, self.pool, self._network, find_cgroups(), number, settings)
        return run.execute(command)


def _machine(spec: PoolSpec) -> Machine:
    boards = any(device.board for device in spec.devices)
    return this_machine() if boards else this_machine(measure=False)
