"""`save_on_failure`: when a device fails, every other one keeps its part of the state.

    rank 0   step 12 done | step 13 ...  x   part of step 12 to its own disk  --.  word of it in the
    rank 1   step 12 done | step 13 ..       killed                             |  run's store, if
    rank 2   step 12 done | step 13 ...  x   part of step 12 to its own disk  --'  that is left

Nobody is asked before the parts are on the disks. A part is the state behind a whole optimizer step
(what an interrupted step did to running statistics is undone), or it is not written.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_edge.errors import EdgeError
from lightning_edge.loop import launcher
from lightning_edge.loop.averages import names_one_of
from lightning_edge.loop.verdict import Kept, LastCheckpoint, verdict
from lightning_edge.replicate import parts
from lightning_edge.replicate.disk import why
from lightning_edge.replicate.state import Path

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lightning_edge.train.stage import Stage
    from lightning_edge.train.transport import Transport

__all__: list[str] = []

log = logging.getLogger(__name__)

FOLDER = "on_failure"
COMING_S = 5.0  # until all that are left have found out that something has failed
FAREWELL_S = 0.5  # for the others to read rank 0's word: it often has the store
PERIOD_S = 0.1


class Rescue:
    """What one device does when a run fails.

    Args:
        trainer: Of the run.
        stage: What this device holds.
        transport: Connects the ranks; all of them make this at the same time.
        names: The devices' names, by rank.
        where: The folder that parts are written to, or True for one beside the checkpoints.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        stage: Stage,
        transport: Transport,
        names: tuple[str, ...],
        where: Any,
    ) -> None:
        self._trainer, self._stage, self._transport = trainer, stage, transport
        self._names, self._where = names, where
        self._run: str = transport.broadcast(secrets.token_hex(3))
        self._before: dict[str, Tensor] = {}
        self._fresh, self._stepping = True, False

    def begin(self) -> None:
        """A batch begins: keep the running statistics as the last optimizer step left them."""
        if self._fresh:
            buffers = self._stage.module.named_buffers()
            self._before = {name: buffer.detach().clone() for name, buffer in buffers}
            self._fresh = False

    def around(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The optimizer's closure; when it returns, the optimizer begins to change weights."""

        def call() -> Any:
            result = closure()
            self._stepping = True
            return result

        return call

    def stepped(self) -> None:
        """The optimizer has changed all weights of this device."""
        self._fresh, self._stepping, self._before = True, False, {}

    def save(self, error: BaseException, last: LastCheckpoint | None) -> None:
        """Write this device's part, and tell what can be done with it.

        Args:
            error: What ended the run; if it is one of ours, its text tells it too.
            last: The last whole checkpoint.
        """
        with launcher.not_ended_by_others():
            self._say("")
            kept = self._write()
            text = verdict(self._hear(kept), kept, self._origin(), last)
        if isinstance(error, EdgeError):
            error.args = (f"{error}\n{text}",)
        else:
            log.warning(text)

    def _origin(self) -> parts.Origin:
        held = sorted({tuple(ranks) for ranks in self._stage.holders.values()})
        step = self._trainer.global_step
        return parts.Origin(self._run, step, self._transport.rank, self._names, tuple(held))

    def _write(self) -> Kept:
        step = self._trainer.global_step
        if self._stepping:
            return Kept(step, None, "it was in the middle of the optimizer's step")
        try:
            path = parts.write(self._origin(), self._tree(), self._folder())
        except Exception as error:  # the disk, the memory, a user's hook
            return Kept(step, None, why(error, self._folder()))
        return Kept(step, str(path.parent), None)

    def _folder(self) -> FilePath:
        if self._where is not True:
            return FilePath(self._where)
        beside = getattr(self._trainer.checkpoint_callback, "dirpath", None)
        return FilePath(beside or self._trainer.default_root_dir) / FOLDER

    def _tree(self) -> dict[str, Any]:
        tree = self._trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        for name, buffer in self._before.items():
            if name in tree["state_dict"]:
                tree["state_dict"][name] = buffer
        _to_boundary(tree["loops"]["fit_loop"], self._trainer)
        elsewhere = self._stage.buffers_elsewhere()

        def better_elsewhere(path: Path) -> bool:
            return names_one_of(path, elsewhere)

        found: dict[str, Any] = parts.without(tree, better_elsewhere)
        return found

    # ---- word to and from the others ----

    def _is_whole(self, found: dict[int, Kept | None], step: int) -> bool:
        ranks = [rank for rank, k in found.items() if k is not None and k.folder and k.step == step]
        return not parts.lost(self._origin().holders, ranks)

    def _say(self, text: str) -> None:
        self._transport.leave_word(f"kept/{self._transport.rank}", text)

    def _hear(self, own: Kept) -> dict[int, Kept | None] | None:
        """By rank what it has kept, None for who came too late; None if nothing can be heard."""
        self._say(json.dumps(own.to_plain()))
        rank, size = self._transport.rank, self._transport.world_size
        limit_s = self._transport.timeout.total_seconds()
        found: dict[int, Kept | None] = {rank: own}
        begin_s = time.monotonic()
        while len([kept for kept in found.values() if kept]) < size:
            for other in range(size):
                if found.get(other) is None:
                    heard, text = self._transport.read_word(f"kept/{other}")
                    if not heard:
                        return found if self._is_whole(found, own.step) else None
                    if text is not None:
                        found[other] = _kept(text)
            waited_s = time.monotonic() - begin_s
            writing = [kept for kept in found.values() if kept is None]
            if waited_s > limit_s or (waited_s > COMING_S and not writing):
                break
            time.sleep(PERIOD_S)
        if rank == 0:
            time.sleep(FAREWELL_S)
        return {other: found.get(other) for other in range(size)}


def _kept(text: str) -> Kept | None:
    with suppress(ValueError, TypeError, KeyError):
        return Kept.from_plain(json.loads(text))
    return None


def _to_boundary(loop: dict[str, Any], trainer: pl.Trainer) -> None:
    """Let the counters be those behind the last optimizer step, as in a checkpoint written there.

    A batch that was interrupted is begun again, and with it those of its accumulation.
    """
    progress = loop["epoch_loop.batch_progress"]
    current, total = progress["current"], progress["total"]
    done = current["processed"]
    again = done % trainer.accumulate_grad_batches if done < trainer.num_training_batches else 0
    if not again and done == current["ready"]:
        return
    for key, count in list(current.items()):
        current[key] = done - again
        total[key] -= count - current[key]
    progress["is_last_batch"] = False
