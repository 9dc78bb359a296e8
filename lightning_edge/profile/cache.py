"""Profiles on disk: one file for each model on each set of devices in their power modes.

    ~/.cache/lightning-edge/profiles/ByteGPT-3f9a0c1d-laptop+orin-77ab12.json

A stored profile is used only if everything it stands for is still so: the devices, their power
modes, the model and the software. If something differs, it is measured anew, and the difference is
told. Where the files lie can be changed with LIGHTNING_EDGE_CACHE.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from lightning_edge.errors import ProfileError
from lightning_edge.plan.profile import Profile
from lightning_edge.plan.profile_merging import differences

__all__ = ["ProfileCache"]

VARIABLE = "LIGHTNING_EDGE_CACHE"


class ProfileCache:
    """A folder of profiles.

    Args:
        folder: Where they are; by default in the user's cache.
        environ: Environment variables.
    """

    def __init__(
        self, folder: Path | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        environ = os.environ if environ is None else environ
        root = environ.get(VARIABLE) or environ.get("XDG_CACHE_HOME")
        base = Path(root) if root else Path.home() / ".cache"
        self.folder = folder or (
            base if environ.get(VARIABLE) else base / "lightning-edge" / "profiles"
        )

    def path(self, present: Profile) -> Path:
        """Where a profile of what is present is, or would be.

        Args:
            present: Devices and model; timings do not matter.
        """
        names = "+".join(device.name for device in present.devices)
        facts = [(d.name, d.kind, d.mode) for d in present.devices]
        key = hashlib.sha256(repr(facts).encode()).hexdigest()[:6]
        model = present.model
        name = f"{model.name}-{model.signature[:8]}-{names[:60]}-{key}.json"
        return self.folder / re.sub(r"[^\w.+-]", "_", name)

    def load(self, present: Profile) -> tuple[Profile | None, str]:
        """Return the stored profile of what is present, or why there is none.

        Returns:
            The profile and an empty text, or None and a sentence ("" if nothing was stored).
        """
        path = self.path(present)
        if not path.exists():
            return None, ""
        try:
            profile = Profile.from_json(path.read_text(encoding="utf-8"), str(path))
        except (OSError, ProfileError) as error:
            return None, f"the stored profile {path} cannot be read: {error}"
        changed = differences(profile, present)
        if changed:
            return None, f"the stored profile {path} is not used: {'; '.join(changed)}"
        return profile, ""

    def save(self, profile: Profile) -> Path | None:
        """Store a profile; None if the folder cannot be written."""
        path = self.path(profile)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_text(profile.to_json(), encoding="utf-8")
            part.replace(path)  # whoever reads meanwhile has the old one
        except OSError:
            return None
        return path


def refuse_foreign(profile: Profile, present: Profile, source: str) -> None:
    """Refuse a profile that somebody named and that is of something else.

    One that was measured has to be of exactly what is present. One that was written by hand (its
    model has no signature) has to know the devices and blocks; its numbers are believed.

    Args:
        profile: As given.
        present: Devices, model and software as they are.
        source: Where it is from.

    Raises:
        ProfileError: With every difference.
    """
    if profile.model.signature:
        problems = differences(profile, present)
    else:
        problems = _strange_names(profile, present)
    if problems:
        raise ProfileError(problems, source=source)


def _strange_names(profile: Profile, present: Profile) -> list[str]:
    problems = []
    if profile.names != present.names:
        listed = ", ".join(present.names)
        problems.append(
            f"devices: it has {', '.join(profile.names)}, and the devices of this run are, by rank,"
            f" {listed} (LIGHTNING_EDGE_DEVICE names a device)"
        )
    legal = {block.name for block in present.model.blocks}
    strange = [cut for cut in profile.model.cuts if cut not in legal]
    if strange:
        shown = ", ".join(present.model.cuts[:8])
        problems.append(
            f"model.blocks: {', '.join(strange)} cannot begin a stage of this model, where there"
            f" are {shown}{', ...' if len(present.model.cuts) > 8 else ''}"
        )
    return problems
