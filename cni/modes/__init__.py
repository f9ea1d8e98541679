"""The modes by name. `register` adds one."""

from __future__ import annotations

from collections.abc import Mapping

from cni.config.mode_rules import ModeRules
from cni.modes.base import Mode
from cni.modes.macvtap import Macvtap
from cni.modes.tap import Tap
from cni.modes.tc import Tc
from cni.modes.veth import Veth
from cni.modes.vhostuser import VhostUser

MODES: dict[str, Mode] = {mode.name: mode for mode in (Tc(), Veth(), Tap(), Macvtap(), VhostUser())}


def register(mode: Mode) -> None:
    """Add a mode, or another one in the place of one with the same name."""
    MODES[mode.name] = mode


def rules() -> Mapping[str, ModeRules]:
    """Return what a configuration may ask of each mode; the first one is the default."""
    return {name: mode.rules for name, mode in MODES.items()}
