from __future__ import annotations

from lightning_edge.testbed import shaping


def test_a_rate_is_a_token_bucket_of_some_milliseconds():
    assert " ".join(shaping.rate("eth0", 2.5)) == (
        "qdisc replace dev eth0 root handle 1: tbf rate 2500000bit burst 16384b latency 50ms"
    )
    assert shaping.burst_bytes(940.0) == 293_750


def test_delay_and_loss_hang_below_the_rate():
    assert " ".join(shaping.delay("eth0", 0.005, 0.01)) == (
        "qdisc add dev eth0 parent 1:1 handle 10: netem limit 1000 delay 5000us loss 1%"
    )
    long = shaping.delay("eth0", 0.3, 0.0, below_rate=False)
    assert " ".join(long[:7]) == "qdisc add dev eth0 root handle 10:"
    assert int(long[long.index("limit") + 1]) * 1514 * 8 > 0.3e9  # what is under way at 1 Gbit/s
    assert "loss" not in long


def test_stations_share_the_medium_in_classes_that_may_borrow_all_of_it():
    commands = [" ".join(command) for command in shaping.medium(["p0", "p1"], ["a", "b"], 40.0)]
    classes = [command for command in commands if command.startswith("class add")]
    assert len(classes) == 4  # all of it, what is not IP, and one per station
    assert all("ceil 40000000bit" in command for command in classes)
    assert sum("rate 19600000bit" in command for command in classes) == 2
    for port in ("p0", "p1"):
        assert any(f"dev {port} parent ffff:" in c and "redirect dev ifb0" in c for c in commands)
    for number, address in enumerate("ab", 1):
        assert any(f"match ip src {address}/32 flowid 1:{number}0" in c for c in commands)


def test_changing_the_medium_names_the_same_classes():
    added = shaping.medium_rate(3, 40.0, change=False)
    changed = shaping.medium_rate(3, 10.0, change=True)
    assert [c[1] for c in added] == ["add"] * 5
    assert [c[1] for c in changed] == ["change"] * 5
    identity = [command[command.index("classid") + 1] for command in added]
    assert identity == [command[command.index("classid") + 1] for command in changed]
