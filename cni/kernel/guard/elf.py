"""A reader of the object that clang makes of guard.bpf.c: its instructions and its maps.

Sources: elf(5), Documentation/bpf/llvm_reloc.rst for R_BPF_64_64.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQ")
_MAP = struct.Struct("<5I")
_MACHINE_BPF, _SYMTAB, _REL, _TO_MAP = 247, 2, 9, 1
_PSEUDO_MAP_FD = 1


class BadObject(ValueError):
    """The object is not one that this reader knows."""


@dataclass(frozen=True)
class MapDefinition:
    """A map as `struct map_definition` of guard.bpf.c has it; sizes are in bytes."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True)
class Object:
    """The packed instructions, the maps by name, and by offset the map that each load names."""

    code: bytes
    maps: dict[str, MapDefinition]
    uses: dict[int, str]

    def linked(self, descriptors: dict[str, int]) -> bytes:
        """Return the instructions with the descriptors of these maps in them."""
        code = bytearray(self.code)
        for offset, name in self.uses.items():
            code[offset + 1] = code[offset + 1] & 0x0F | _PSEUDO_MAP_FD << 4
            struct.pack_into("<i", code, offset + 4, descriptors[name])
        return bytes(code)


class _Elf:
    """The sections of an object; `section` finds one by name."""

    def __init__(self, data: bytes) -> None:
        header = _HEADER.unpack_from(data)
        if header[0][:6] != b"\x7fELF\x02\x01" or header[2] != _MACHINE_BPF:
            raise BadObject("not a 64-bit little-endian ELF object for eBPF")
        self._data = data
        start, count, names = header[6], header[12], header[13]
        self.sections = [_SECTION.unpack_from(data, start + n * 64) for n in range(count)]
        self._names = self.body(names)

    def body(self, n: int) -> bytes:
        offset, size = self.sections[n][4:6]
        return self._data[offset : offset + size]

    def section(self, name: str) -> int:
        for n, each in enumerate(self.sections):
            if _text(self._names, each[0]) == name:
                return n
        raise BadObject(f"no section {name}")

    def symbols(self) -> list[tuple[str, int, int]]:
        """The name, section and value of each symbol."""
        (table,) = (n for n, each in enumerate(self.sections) if each[1] == _SYMTAB)
        names = self.body(self.sections[table][6])
        found = (_SYMBOL.unpack(raw) for raw in _split(self.body(table), _SYMBOL.size))
        return [(_text(names, name), where, value) for name, _, _, where, value, _ in found]

    def relocations(self, section: int) -> list[tuple[int, int]]:
        """The offset and the symbol's number of each relocation of a section."""
        found = []
        for n, each in enumerate(self.sections):
            if each[1] == _REL and each[7] == section:
                for offset, info in _RELOCATION.iter_unpack(self.body(n)):
                    if info & 0xFFFFFFFF != _TO_MAP:
                        raise BadObject(f"relocation {info & 0xFFFFFFFF} at {offset:#x}")
                    found.append((offset, info >> 32))
        return found


def read(data: bytes) -> Object:
    """Read an object with the sections `classifier` and `maps`. Raises BadObject."""
    try:
        elf = _Elf(data)
        code, maps = elf.section("classifier"), elf.section("maps")
        symbols = elf.symbols()
        uses = {offset: symbols[n][0] for offset, n in elf.relocations(code)}
        known = {
            name: MapDefinition(*_MAP.unpack_from(elf.body(maps), value))
            for name, where, value in symbols
            if where == maps and name
        }
    except (struct.error, IndexError, ValueError) as e:
        raise BadObject(f"cannot read the object: {e}") from e
    if unknown := set(uses.values()) - set(known):
        raise BadObject(f"not maps: {', '.join(sorted(unknown))}")
    return Object(elf.body(code), known, uses)


def _split(data: bytes, size: int) -> list[bytes]:
    return [data[n : n + size] for n in range(0, len(data), size)]


def _text(table: bytes, offset: int) -> str:
    return table[offset : table.index(b"\0", offset)].decode()
