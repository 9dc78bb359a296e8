"""Injected faults: what each device says, and how soon all of them know.

    python -m benchmarks.faults                     # all of them, about an hour on two cores
    python -m benchmarks.faults --short             # twenty of them, in a minute
    python -m benchmarks.faults --only cut deafen   # these kinds
    python -m benchmarks.faults --part 2/3 --json second.json   # in parts, added up at the end:
    python -m benchmarks.faults --add-up first.json second.json third.json

A fault is data: what happens, in which phase of a fit, on which rank, under which plan. Every fit
runs on real local processes through the real Trainer; where cables are pulled each has a network of
its own. A fault counts as passed when every other device ends with an error that names the device
where it happened, within `LIMIT_S` of the moment; rubbish and jumps of the clock when nothing ends.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.fault_kinds import FILES, left_behind, memory_group, missing, strike, surroundings

LIMIT_S = 5.0
BUSY_LIMIT_S = 12.0  # for checks on machines that do other things: less than any timeout
HARMLESS = ("rubbish", "clock")
NETWORKS = ("cut", "deafen")  # these need root, and network namespaces
TIMEOUT_S = 20.0
RENDEZVOUS_S = 3.0  # nobody can be missed earlier than at the timeout of the meeting, ...
STORE_FACTOR = 3.0  # ... which torch's store takes for longer when its host does not come

PHASES = (
    "rendezvous", "setup", "probe", "forward", "backward", "optimizer", "validation", "epoch end",
    "checkpoint", "teardown",
)  # fmt: skip
PLANS: dict[str, tuple[dict[int, float], ...]] = {
    "pipeline of 3": ({0: 1.0}, {1: 1.0}, {2: 1.0}),
    "2 share, then 1": ({0: 0.625, 1: 0.375}, {2: 1.0}),
    "1, then 2 share": ({0: 1.0}, {1: 0.3, 2: 0.7}),
    "3 share": ({0: 0.5, 1: 0.3, 2: 0.2},),
}
ONE, ALL, LAST = ["2 share, then 1"], list(PLANS), "checkpoint"
# What happens, in which phases, on which ranks, under which plans.
KINDS: dict[str, tuple[Sequence[str], Sequence[int], Sequence[str]]] = {
    "exception": (PHASES, range(3), ALL),
    "kill": (PHASES, range(3), ALL),
    "freeze": (PHASES, range(3), ALL),
    "cut": (PHASES, range(3), ONE),
    "deafen": (PHASES, range(3), ONE),
    "memory": (("forward", "backward", "validation"), range(3), ONE),
    "full disk": ((LAST,), [0], ALL),
    "version": (("setup",), range(3), ALL),
    "rubbish": (PHASES, range(3), ONE),
    "clock": (PHASES, range(3), ONE),
}


@dataclass(frozen=True)
class Case:
    """One fault.

    Args:
        fault: One of `KINDS`; `benchmarks.fault_kinds` says what each does.
        phase: One of `PHASES`, in the second step or at its first occurrence.
        rank: Where.
        plan: Name of one of `PLANS`.
    """

    fault: str
    phase: str
    rank: int
    plan: str


@dataclass(frozen=True)
class Outcome:
    """What became of it.

    Args:
        case: The fault.
        seconds: From the fault until the last of the other devices had its error; None if one of
            them never had any.
        texts: The other devices' last words.
        problem: Why it does not count as passed; empty if it does.
    """

    case: Case
    seconds: float | None
    texts: tuple[str, ...]
    problem: str


def cases(faults: Iterable[str] = KINDS, plans: Iterable[str] = PLANS) -> list[Case]:
    """All of them, without what fails nobody."""
    kept = set(plans)
    every = (
        Case(fault, phase, rank, plan)
        for fault in faults
        for phase, rank, plan in itertools.product(*KINDS[fault])
        if plan in kept
    )
    # A plan of one stage has no cuts: a trial of the step that raises there is none of its needs.
    return [
        case
        for case in every
        if (case.fault, case.phase, case.plan) != ("exception", "probe", "3 share")
    ]


def short() -> list[Case]:
    """Twenty of them that take a minute: of every kind, in every phase, on each rank."""
    names = list(PLANS)
    twenty = [
        *(("exception", phase) for phase in ("setup", "probe", "forward", "backward")),
        *(("exception", phase) for phase in ("optimizer", "validation", "teardown")),
        *(("kill", phase) for phase in ("backward", "epoch end", "checkpoint", "teardown")),
        ("freeze", "forward"), ("cut", "validation"), ("deafen", "epoch end"),
        ("memory", "backward"), ("full disk", "checkpoint"), ("version", "setup"),
        ("rubbish", "rendezvous"), ("rubbish", "forward"), ("clock", "optimizer"),
    ]  # fmt: skip
    found = []
    for number, (fault, phase) in enumerate(twenty):
        _, ranks, plans = KINDS[fault]
        plan = plans[number % len(plans)]
        if (fault, phase, plan) == ("exception", "probe", "3 share"):
            plan = names[0]
        found.append(Case(fault, phase, ranks[number % len(ranks)], plan))
    return found


def take_part(
    rank: int, world_size: int, case: dict[str, Any], folder: str, places: Sequence[dict[str, Any]]
) -> tuple[str, float]:
    """One device's fit: its last words, and when it said them (the clock of the machine)."""
    place = places[rank] if places else {}
    with surroundings(place):
        return _fit(rank, case, folder, place)


def _fit(rank: int, case: dict[str, Any], folder: str, place: dict[str, Any]) -> tuple[str, float]:
    import lightning as L

    from lightning_edge import EdgeCollabStrategy
    from tests.models import MODELS
    from tests.train.test_transparency import plan_of
    from tests.trainers import Module, loaders

    moment = Path(folder) / "moment"
    mine, phase = case["rank"] == rank, case["phase"]

    def here(at: str, *, ready: bool = True) -> None:
        if mine and at == phase and ready:
            strike(case["fault"], moment, place)

    class Faulty(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            here("forward" if self.started else "probe", ready=self.late or not self.started)
            return super().training_step(batch, batch_idx)

        started = late = False

    class Trigger(L.Callback):
        def setup(self, trainer: Any, module: Any, stage: str) -> None:
            here("setup")

        def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
            module.started, module.late = True, trainer.global_step == 1
            for parameter in module.parameters():
                if module.late and parameter.requires_grad:
                    parameter.register_hook(lambda gradient: here("backward"))

        def on_before_optimizer_step(self, trainer: Any, module: Any, *_: Any) -> None:
            here("optimizer", ready=trainer.global_step == 1)

        def on_validation_batch_start(self, *_: Any) -> None:
            here("validation")

        def on_train_epoch_end(self, *_: Any) -> None:
            here("epoch end")

        def on_save_checkpoint(self, *_: Any) -> None:
            here("checkpoint")

        def on_train_end(self, *_: Any) -> None:
            here("teardown")

    stages = PLANS[case["plan"]]
    cuts = tuple(f"net.{cut}" for cut in MODELS["tiny"][2])
    plan = plan_of(*stages, cuts=cuts, micro_batches=2)
    timeout = timedelta(seconds=RENDEZVOUS_S if phase == "rendezvous" else TIMEOUT_S)
    try:
        here("rendezvous")
        L.seed_everything(3, verbose=False)
        trainer = L.Trainer(
            accelerator="cpu", devices=1, max_epochs=1, logger=False, num_sanity_val_steps=0,
            strategy=EdgeCollabStrategy(plan, timeout=timeout), callbacks=[Trigger()],
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(Faulty({"model": "tiny"}), *loaders({"model": "tiny", "rows": 16}))
        trainer.strategy.barrier("the end of the program")
        trainer.strategy.disconnect()
    except Exception as error:
        return f"{type(error).__name__}: {error}", time.monotonic()
    return "", time.monotonic()


def inject(pool: Any, case: Case, bed: Any = None, limit_s: float = LIMIT_S) -> Outcome:
    """Run one fit with its fault."""
    from tests.pool import Died, WorkerError

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{FILES}{os.getpid()}-"))
        may_die = [case.rank] if case.fault in ("kill", "memory") else []
        places = stack.enter_context(_places(bed)) if case.fault in NETWORKS else []
        if case.fault == "memory":
            stack.enter_context(memory_group())
        if case.fault == "full disk":
            stack.callback(_unmount, Path(folder) / "checkpoints")
        try:
            found = pool.run(
                take_part, 3, asdict(case), folder, places, timeout=60, may_die=may_die
            )
        except WorkerError as error:
            return Outcome(case, None, (), f"a device hung or died: {str(error)[:200]}")
        moment = Path(folder) / "moment"
        if not moment.exists():
            return Outcome(case, None, (), "the fault never happened")
        at_s = float(moment.read_text())
    struck = found[case.rank]
    others = [found[rank] for rank in range(3) if rank != case.rank]
    texts = tuple(text for text, _ in others)
    if case.fault in HARMLESS:
        texts = tuple(text for text, _ in found)
        return Outcome(case, 0.0, texts, "a device was harmed" if any(texts) else "")
    seconds = max(time_s for _, time_s in others) - at_s
    problem = _problem(case, seconds, texts, limit_s)
    if not isinstance(struck, Died) and not struck[0]:
        problem = problem or "the device itself ended as if nothing had happened"
    return Outcome(case, seconds, texts, problem)


@contextmanager
def _places(bed: Any) -> Iterator[list[dict[str, Any]]]:
    """Networks of their own for the devices; cables are put back afterwards."""
    slot, network = bed._slot, bed._network
    try:
        yield [
            {"namespace": slot.namespace(rank), "hub": slot.hub, "port": f"p{rank}",
             "master": slot.address(0)}
            for rank in range(3)
        ]  # fmt: skip
    finally:
        for rank in range(3):
            network.set_connected(rank, True)
            network.set_hearing(rank, True)


def _unmount(folder: Path) -> None:
    if folder.is_mount():
        # a file that could not be written may be open still
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=20)


def _problem(case: Case, seconds: float, texts: Sequence[str], limit_s: float) -> str:
    if case.fault == "version":
        alike = all("lightning_edge:  " in text and "0.0.other" in text for text in texts)
        return "" if alike else "the versions are not told"
    if case.fault == "full disk" and not all("disk is full" in text for text in texts):
        return "the full disk is not told"
    if case.fault == "memory" and not any("its memory was nearly full" in text for text in texts):
        return "the memory is not told"
    if case.phase == "rendezvous":
        limit_s += RENDEZVOUS_S * STORE_FACTOR
    if not all(texts):
        return "a device ended as if nothing had happened"
    if case.phase != "rendezvous" and not all(f"rank {case.rank}" in text for text in texts):
        return "a device names another one"
    return f"{seconds:.1f} s are more than {limit_s:g}" if seconds > limit_s else ""


def table(outcomes: Sequence[Outcome]) -> str:
    """Fault x phase: how many passed, and the seconds until all devices knew."""
    faults = list(dict.fromkeys(one.case.fault for one in outcomes))
    lines = [
        "| phase | " + " | ".join(faults) + " |",
        "|---|" + "---|" * len(faults),
    ]
    for phase in PHASES:
        cells = [_cell([o for o in outcomes if (o.case.fault, o.case.phase) == (f, phase)])
                 for f in faults]  # fmt: skip
        lines.append(f"| {phase} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(outcomes: Sequence[Outcome]) -> str:
    if not outcomes:
        return "-"
    passed = sum(not one.problem for one in outcomes)
    ended = [one for one in outcomes if one.case.fault not in HARMLESS]
    known_s = [one.seconds for one in ended if one.seconds is not None]
    text = f"{passed} of {len(outcomes)}"
    if known_s:
        text += f": {statistics.median(known_s):.2f} s (at most {max(known_s):.2f})"
    return text


def run(
    chosen: Sequence[Case],
    say: Callable[[str], None] = print,
    keep: Callable[[list[Outcome]], None] = lambda outcomes: None,
    limit_s: float = LIMIT_S,
) -> list[Outcome]:
    """Inject them one after the other; `keep` what there is so far."""
    from lightning_edge.testbed import DeviceSpec, Testbed
    from tests.pool import Pool

    outcomes = []
    with ExitStack() as stack:
        pool = Pool()
        stack.callback(pool.close)
        bed, hub = None, ""
        if any(case.fault in NETWORKS for case in chosen):
            bed = stack.enter_context(Testbed([DeviceSpec() for _ in range(3)]))
            hub = bed._slot.hub if bed._slot is not None else ""
        # starts the processes, and holds that all is well
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        nothing = asdict(Case("none", "never", 0, next(iter(PLANS))))
        assert [text for text, _ in pool.run(take_part, 3, nothing, folder, [])] == [""] * 3
        for case in chosen:
            outcome = inject(pool, case, bed, limit_s)
            outcomes.append(outcome)
            keep(outcomes)
            if outcome.problem:
                say(f"FAILED {case}: {outcome.problem}")
                for text in outcome.texts:
                    say(f"    {text}")
    left = left_behind(hub)
    assert not left, f"left behind: {left}"
    return outcomes


def _complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _read(plain: dict[str, Any]) -> Outcome:
    return Outcome(Case(**plain["case"]), plain["seconds"], tuple(plain["texts"]), plain["problem"])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--plans", nargs="*", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--short", action="store_true", help="twenty in a minute")
    parser.add_argument("--sample", type=int, help="so many of them, evenly chosen")
    parser.add_argument("--part", default="1/1", help="2/3: the second third of them")
    parser.add_argument("--json", type=Path, help="where to write the outcomes, or add to them")
    parser.add_argument("--add-up", nargs="*", type=Path, help="only the table of these files")
    arguments = parser.parse_args()
    chosen = short() if arguments.short else cases(arguments.only, arguments.plans)
    if arguments.sample:
        chosen = chosen[:: max(len(chosen) // arguments.sample, 1)][: arguments.sample]
    number, parts = (int(part) for part in arguments.part.split("/"))
    chosen = chosen[number - 1 :: parts]
    limit_s = BUSY_LIMIT_S if arguments.short else LIMIT_S
    lacking = {kind: missing(kind) for kind in KINDS}
    sys.stdout.writelines(f"{kind}: left out, {why}\n" for kind, why in lacking.items() if why)
    chosen = [case for case in chosen if not lacking[case.fault]]
    before = []
    if arguments.json and arguments.json.exists():
        before = json.loads(arguments.json.read_text())

    def keep(outcomes: list[Outcome]) -> None:
        if arguments.json:
            plain = before + [asdict(one) for one in outcomes]
            arguments.json.write_text(json.dumps(plain, indent=1))

    outcomes = [] if arguments.add_up else run(chosen, _complain, keep, limit_s)
    if arguments.add_up:
        outcomes = [_read(one) for path in arguments.add_up for one in json.loads(path.read_text())]
    passed = sum(not one.problem for one in outcomes)
    print(f"{passed} of {len(outcomes)} faults passed\n\n{table(outcomes)}")
    return 0 if passed == len(outcomes) else 1


if __name__ == "__main__":
    from benchmarks import faults  # its functions, which the devices find by their module's name

    sys.exit(faults.main())
