"""The program itself judges a frame, by BPF_PROG_TEST_RUN."""

from __future__ import annotations

import ctypes
import struct

from cni.kernel import bpf
from cni.kernel.guard.program import Guard
from cni.kernel.guard.values import REASONS

_TEST_RUN = 10
_CONTEXT = 192  # struct __sk_buff; its cb begins at 48
_PASS, _DROP = 0xFFFFFFFF, 2


def runs(frame: bytes) -> bool:
    """Whether the kernel runs it: one too short for what its EtherType says is refused."""
    shortest = {b"\x08\x00": 34, b"\x86\xdd": 54}.get(frame[12:14], 14)
    return len(frame) >= shortest


class Judge:
    """Frames of up to `size` bytes through one loaded copy."""

    def __init__(self, guard: Guard, size: int = 3000) -> None:
        self._data = ctypes.create_string_buffer(size)
        self._context = ctypes.create_string_buffer(_CONTEXT)
        self._attr = bytearray(80)
        places = (ctypes.addressof(self._data), 0)
        struct.pack_into("=IIIIQQII", self._attr, 0, guard.fd, 0, 0, 0, *places, 1, 0)
        struct.pack_into("=IIQQ", self._attr, 40, 0, _CONTEXT, 0, ctypes.addressof(self._context))

    def judge(self, frame: bytes) -> str:
        """Return the reason for which a frame is dropped, "" for none."""
        ctypes.memmove(self._data, frame, len(frame))
        struct.pack_into("=II", self._attr, 8, len(frame), 0)
        struct.pack_into("=I", self._attr, 44, _CONTEXT)
        bpf.syscall(_TEST_RUN, self._attr, "run the guard")
        (verdict,) = struct.unpack_from("=I", self._attr, 4)
        if verdict == _PASS:
            return ""
        assert verdict == _DROP
        (reason,) = struct.unpack_from("=I", self._context, 48)
        return REASONS[reason - 1]
