"""The sizes of posted buffers, which both ends must count alike: gloo ends a process otherwise."""

from hypothesis import given
from hypothesis import strategies as st

from lightning_edge.train.channel import FIRST_CAPACITY_BYTES, Channel, Slots

K = 1 << 10
sizes = st.integers(0, 4000 * K)


def test_the_picture_in_the_module():
    slots = Slots(2)
    seen = []
    for size in (10 * K, 20 * K, 900 * K, 20 * K, 20 * K):
        seen.append(slots.capacities[0])
        slots.use(size)
    assert seen[:4] == [64 * K] * 4
    assert seen[4] == 1128 * K  # 1.25 x 900, in whole pages


def test_a_large_message_is_forgotten_after_many_small_ones():
    slots = Slots(1)
    slots.use(1000 * K)
    for _ in range(63):
        assert slots.use(1 * K) == 1252 * K
    assert slots.use(1 * K) == FIRST_CAPACITY_BYTES


def test_control_buffers_stay_small():
    slots = Slots(2, Channel.CONTROL.limit)
    assert slots.use(1 << 30) == 1 << 20


@given(st.integers(1, 5), st.lists(sizes | st.tuples(st.integers(1, 8)), max_size=100))
def test_a_receiver_that_lags_behind_counts_as_the_sender_did(window, events):
    """Numbers are messages, tuples a wider window that both ends agree on at that point."""
    sender, messages, believed = Slots(window), [], []
    for event in events:
        if isinstance(event, tuple):
            sender.widen(max(event[0], sender.window))
        else:
            believed.append(sender.capacities[0])
            messages.append((event, sender.window))
            sender.use(event)
    receiver = Slots(window)
    posted = list(receiver.capacities)
    for size, window_then in messages:
        posted += receiver.widen(window_then)
        posted.append(receiver.use(size))
    assert believed == posted[: len(believed)]
    assert list(receiver.capacities) == posted[len(messages) :]


def test_tags_of_channels_differ():
    tags = [channel.tag + part for channel in Channel for part in (0, 1)]
    assert len(set(tags)) == len(tags)
