"""Holes of the heap are given back where memory is scarce, and only there."""

import ctypes
import sys

import pytest

from lightning_edge.train import heap
from lightning_edge.train.heap import Heap

MIB = 1 << 20


class Machine:
    """What a heap sees: bytes in memory, bytes left, and how often it gave back."""

    def __init__(self, resident: int, room: int) -> None:
        self.resident, self.room, self.given = resident, room, 0

    def heap(self) -> Heap:
        return Heap(lambda: self.resident, lambda: self.room, self._give_back)

    def _give_back(self) -> None:
        self.given += 1


def test_with_room_left_nothing_is_given_back():
    machine = Machine(resident=300, room=700)
    own = machine.heap()
    own.look()
    for machine.resident in (300, 500, 800):
        own.relieve()
    assert machine.given == 0


def test_where_a_fifth_is_left_it_is_given_back_each_time():
    machine = Machine(resident=300, room=700)
    own = machine.heap()
    own.look()
    for machine.resident in (801, 700, 900):
        own.relieve()
    assert machine.given == 2


def test_others_take_their_part(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(heap.time, "monotonic", lambda: clock[0])
    machine = Machine(resident=300, room=700)
    own = machine.heap()
    own.look()
    machine.room = 10
    own.look()  # too soon: reading it costs more than a small step
    own.relieve()
    assert machine.given == 0
    clock[0] = heap.LOOK_S
    own.look()
    own.relieve()
    assert machine.given == 1


def test_where_it_cannot_be_asked_for_nothing_happens():
    own = Heap(lambda: 900, lambda: 0, None)
    own.look()
    own.relieve()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_holes_of_this_process_leave_its_memory(monkeypatch):
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this C library cannot be asked")
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    size, count = 64 << 10, 1024  # below what glibc maps by itself
    blocks = [libc.malloc(size) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    full = heap._resident()
    for block in blocks[:-1]:
        libc.free(block)  # the last one stays: a hole, not the heap's end
    holes = heap._resident()
    own = heap.this_heap()
    monkeypatch.setattr(own, "_room", lambda: 0)
    monkeypatch.setattr(own, "_looked_s", -heap.LOOK_S)
    own.look()
    own.relieve()
    relieved = heap._resident()
    libc.free(blocks[-1])
    monkeypatch.undo()
    own._looked_s = -heap.LOOK_S
    assert full - holes < 8 * MIB
    assert holes - relieved > 50 * MIB
