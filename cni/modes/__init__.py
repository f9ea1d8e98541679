"""The modes by name."""

from cni.modes.base import Mode
from cni.modes.macvtap import Macvtap
from cni.modes.tap import Tap
from cni.modes.tc import Tc
from cni.modes.veth import Veth
from cni.modes.vhostuser import VhostUser

MODES: dict[str, Mode] = {mode.name: mode for mode in (Tc(), Veth(), Tap(), Macvtap(), VhostUser())}
