"""The capabilities of this process. Source: capabilities(7), proc_pid_status(5)."""

from __future__ import annotations

from pathlib import Path

from cni.errors import NotReady

# What every ADD needs: links, and namespaces with eBPF. Numbers: linux/capability.h.
_NEEDED = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


def require() -> None:
    """Raise NotReady when this process may not do what every ADD does."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    if lacking := [name for name, bit in _NEEDED.items() if not effective >> bit & 1]:
        raise NotReady(
            f"vmlinkd has no {' and no '.join(lacking)}; give it what CapabilityBoundingSet in "
            "conf/vmlinkd.service has, or start its container privileged"
        )
