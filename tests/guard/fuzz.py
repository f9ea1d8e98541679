"""Random and mutated frames through the program and through the model of its rules.

    python -m tests.guard.fuzz --count 1000000 --seed 1

prints the frames about which they disagree; the exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
from collections.abc import Callable, Iterator

from cni.kernel.guard import program
from tests.guard.corpus import BY_A_SERVER, CORPUS, LAYER_2, SERVER, STRICT
from tests.guard.corpus_v6 import Frames
from tests.guard.frames import LL, V4, V4_OTHER, V6, V6_OTHER, ip, mac
from tests.guard.model import Model
from tests.guard.testrun import Judge, runs

LONGEST = 2000
# What the rules compare with, so that a mutation hits more than noise.
WORDS = [
    *(n.to_bytes(1, "big") for n in (0, 1, 2, 6, 17, 43, 44, 50, 51, 58, 59, 60, 135, 139, 140)),
    *(n.to_bytes(1, "big") for n in (128, 131, 132, 133, 134, 136, 137, 143, 254, 255, 0x45, 0x60)),
    *(n.to_bytes(2, "big") for n in (67, 68, 546, 547, 0x0800, 0x0806, 0x86DD, 0x8100, 0x88A8)),
    *(n.to_bytes(2, "big") for n in (0x8035, 0x0835, 0x2000, 0x1FFF, 100, 200, 101, 1, 0xFFF8)),
    *(mac(m) for m in ("02:00:00:00:00:01", "00:00:5e:00:01:07", "02:00:00:00:00:99")),
    *(ip(a) for a in (V4, V4_OTHER, "10.9.0.5", "0.0.0.0", "255.255.255.255")),
    *(ip(a) for a in (V6, V6_OTHER, LL, "fd00:9::5", "::", "ff02::1")),
]
FRAMES = [frame for _, frame in (CORPUS | BY_A_SERVER).values()]
# Offsets at which the rules read: headers without a tag, and some options and ports behind them.
PLACES = (5, 6, 11, 12, 14, 16, 18, 20, 21, 22, 23, 26, 28, 30, 34, 36, 38, 54, 55, 56, 62, 78, 79)


def overwrite(rng: random.Random, frame: bytearray) -> None:
    word, at = rng.choice(WORDS), rng.choice((*PLACES, rng.randrange(len(frame))))
    if at < len(frame):
        frame[at : at + len(word)] = word


def flip(rng: random.Random, frame: bytearray) -> None:
    frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)


def cut(rng: random.Random, frame: bytearray) -> None:
    del frame[rng.randrange(14, len(frame) + 1) :]


def extend(rng: random.Random, frame: bytearray) -> None:
    frame += rng.randbytes(rng.choice((1, 2, 4, 8, 40)))


def insert(rng: random.Random, frame: bytearray) -> None:
    at = rng.choice((12, 34, 54, 78, len(frame)))
    kinds = (b"\x81\0\0\x64", b"\x3a\0" + bytes(6), b"\x3c\1" + bytes(14), b"\1\1" + bytes(6))
    frame[at:at] = rng.choice(kinds)


def chain(rng: random.Random, frame: bytearray) -> None:
    """Put an extension header behind the header of IPv6, and that of IPv6 right."""
    if frame[12:14] != b"\x86\xdd" or len(frame) < 54:
        return
    kind, size = rng.choice((0, 43, 44, 51, 60, 135, 139, 140)), rng.choice((0, 0, 1, 4))
    if kind in (44, 51):
        size = 0
    length = 8 if kind == 44 else (size + 2) * 4 if kind == 51 else (size + 1) * 8
    header = bytearray(rng.choice((bytes(length), rng.randbytes(length))))
    header[:2] = frame[20], size
    frame[20] = kind
    frame[54:54] = header
    frame[18:20] = (len(frame) - 54).to_bytes(2, "big")


def splice(rng: random.Random, frame: bytearray) -> None:
    at = rng.randrange(14, len(frame) + 1)
    frame[at:] = rng.choice(FRAMES)[at:]


def noise(rng: random.Random, frame: bytearray) -> None:
    frame[14:] = rng.randbytes(rng.randrange(1, 120))


MUTATIONS: tuple[Callable[[random.Random, bytearray], None], ...] = (
    overwrite,
    overwrite,
    overwrite,
    flip,
    flip,
    cut,
    extend,
    insert,
    chain,
    chain,
    splice,
    noise,
)


def frames(seed: int, count: int) -> Iterator[bytes]:
    """Yield so many frames that the kernel runs, the same ones for a seed."""
    rng = random.Random(seed)
    while count:
        frame = bytearray(rng.choice(FRAMES))
        for _ in range(rng.choice((1, 1, 2, 3, 5))):
            rng.choice(MUTATIONS)(rng, frame)
        made = bytes(frame[:LONGEST])
        if runs(made):
            count -= 1
            yield made


def compare(
    seed: int, count: int, seen: collections.Counter[str]
) -> Iterator[tuple[bytes, str, str]]:
    """Yield the frames about which model and program disagree, with the reasons of both."""
    judges = []
    for values in (STRICT, LAYER_2, SERVER):
        guard = program.load()
        guard.put(values)
        judges.append((guard, Model(values), Judge(guard)))
    try:
        for n, frame in enumerate(frames(seed, count)):
            _, model, judge = judges[max(n % 5 - 2, 0)]  # the strict one has most rules
            expected, found = model.judge(frame), judge.judge(frame)
            seen[expected] += 1
            if expected != found:
                yield frame, expected, found
    finally:
        for guard, _, _ in judges:
            guard.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    seen: collections.Counter[str] = collections.Counter()
    wrong: Frames = {}
    for frame, expected, found in compare(options.seed, options.count, seen):
        wrong[frame.hex()] = (f"model {expected or 'pass'}, program {found or 'pass'}", frame)
    for text, (what, _) in wrong.items():
        print(what, text)
    print(f"{options.count} frames, {len(wrong)} disagreements;", dict(seen))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
