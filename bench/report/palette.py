"""The colours of page and plots, light and dark; a role has the same colour everywhere."""

from __future__ import annotations

# Plots are drawn in LIGHT. On the page each colour is replaced by its name, which the page's style
# defines, so no two may be equal.
LIGHT = {
    "ink": "#1b2430",
    "muted": "#5d6875",
    "line": "#d9dee4",
    "paper": "#fdfdfc",
    "vmlink": "#1f66c1",
    "peer": "#b6540f",
    "baseline": "#6f7882",
    "limit": "#2c8454",
    "part0": "#a9c8ee",
    "part1": "#f3c9a3",
    "part2": "#b7dfc6",
    "part3": "#e3bfe0",
    "part4": "#f0e0a0",
    "part5": "#b9e1e6",
    "part6": "#e9b9b9",
    "part7": "#d5d9df",
    "part8": "#c9d8a0",
    "part9": "#cbb9ec",
    "part10": "#f2b8cf",
    "part11": "#d8c7ad",
}
DARK = {
    "ink": "#e6eaf0",
    "muted": "#9da8b5",
    "line": "#333c47",
    "paper": "#14191f",
    "vmlink": "#6fb0ff",
    "peer": "#f0a061",
    "baseline": "#a7b0bb",
    "limit": "#67c793",
    "part0": "#2b4f7d",
    "part1": "#7a4a22",
    "part2": "#2c5f42",
    "part3": "#63406a",
    "part4": "#655a1f",
    "part5": "#235a63",
    "part6": "#6d3838",
    "part7": "#444c57",
    "part8": "#4c5c24",
    "part9": "#4b3c77",
    "part10": "#73364f",
    "part11": "#5b4b34",
}
_ROLES = {"vmlink": "vmlink", "peer": "peer", "baseline": "baseline"}


def role(name: str) -> str:
    """The name of the colour of a role."""
    return _ROLES.get(name, "limit")


def adaptable(svg: str) -> str:
    """An SVG with its colours replaced by those that the page's style defines."""
    for name, colour in LIGHT.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg
