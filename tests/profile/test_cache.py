"""Stored profiles are used for exactly what they were measured on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lightning_edge.errors import ProfileError
from lightning_edge.plan.profile import Profile
from lightning_edge.profile.cache import ProfileCache, refuse_foreign
from tests.plan.profiles import simple


def measured(**model: str) -> Profile:
    profile = simple([1.0, 2.0])
    facts = {"name": "Net", "signature": "0123456789abcdef", **model}
    return replace(profile, model=replace(profile.model, **facts), software={"torch": "2.13"})


def test_what_was_stored_is_found_again(tmp_path: Path) -> None:
    cache = ProfileCache(tmp_path / "deep" / "down")
    assert cache.load(measured()) == (None, "")
    path = cache.save(measured())
    assert path is not None
    assert path.name.startswith("Net-01234567-d0+d1-")
    assert cache.load(measured()) == (measured(), "")
    assert list(path.parent.iterdir()) == [path]


def test_a_stale_one_is_refused_with_the_difference(tmp_path: Path) -> None:
    cache = ProfileCache(tmp_path)
    cache.save(measured())
    now = replace(measured(), software={"torch": "2.14"})
    found, why = cache.load(now)
    assert found is None
    assert "torch was '2.13', is '2.14'" in why.replace('"', "'")


def test_other_models_devices_and_modes_have_files_of_their_own(tmp_path: Path) -> None:
    cache = ProfileCache(tmp_path)
    other = measured(signature="f" * 16)
    device = measured().devices[0]
    slower = replace(device, modes=(replace(device.modes[0], name="7W"),), mode="7W")
    moved = replace(measured(), devices=(slower, measured().devices[1]))
    assert len({cache.path(profile) for profile in (measured(), other, moved)}) == 3


def test_a_damaged_file_is_measured_again(tmp_path: Path) -> None:
    cache = ProfileCache(tmp_path)
    cache.path(measured()).write_text("{")
    found, why = cache.load(measured())
    assert found is None
    assert "cannot be read" in why


def test_a_folder_that_cannot_be_written_does_not_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert ProfileCache(tmp_path / "file" / "below").save(measured()) is None


def test_the_folder_follows_the_environment(tmp_path: Path) -> None:
    assert ProfileCache(environ={"LIGHTNING_EDGE_CACHE": str(tmp_path)}).folder == tmp_path
    shared = ProfileCache(environ={"XDG_CACHE_HOME": str(tmp_path)}).folder
    assert shared == tmp_path / "lightning-edge" / "profiles"


def test_one_written_by_hand_needs_the_names_of_devices_and_blocks_only() -> None:
    by_hand = simple([5.0, 1.0])
    refuse_foreign(by_hand, measured(), "mine.yaml")
    devices = (replace(by_hand.devices[0], name="x"), by_hand.devices[1])
    renamed = replace(by_hand, devices=devices, links=())
    blocks = (*by_hand.model.blocks[:-1], replace(by_hand.model.blocks[-1], name="tail"))
    strange = replace(renamed, model=replace(by_hand.model, blocks=blocks))
    with pytest.raises(ProfileError, match=r"mine\.yaml has 2 problems") as caught:
        refuse_foreign(strange, measured(), "mine.yaml")
    assert "it has x, d1, and the devices of this run are, by rank, d0, d1" in str(caught.value)
    assert "tail cannot begin a stage of this model, where there are b1, b2, b3" in str(
        caught.value
    )


def test_a_measured_one_of_something_else_is_refused() -> None:
    with pytest.raises(ProfileError, match="signature was"):
        refuse_foreign(measured(signature="f" * 16), measured(), "old.json")
