"""The routes of a CNI result as they are made: each with its gateway, in an order that works. Pure.

Source: CNI specification 1.1.0, section "ADD Success", routes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from cni.spec.types import IP, Route, family_of, gateways_by_family

MAIN_TABLES = (None, 0, 254)  # RT_TABLE_UNSPEC and RT_TABLE_MAIN in linux/rtnetlink.h
SCOPE_LINK = 253  # RT_SCOPE_LINK
DEFAULTS = {4: "0.0.0.0/0", 6: "::/0"}  # by IP version
_Network = IPv4Network | IPv6Network


def resolved(routes: Iterable[Route], ips: Iterable[IP]) -> tuple[Route, ...]:
    """Return each route once, with its gateway; those without one are the first.

    A route without a gateway gets the first of its family in `ips`, unless its scope is the link:
    another's gateway may be reached by it.
    """
    gateways = gateways_by_family(ips)
    whole = (_with_gateway(route, gateways) for route in routes)
    return tuple(sorted(dict.fromkeys(whole), key=lambda route: bool(route.gw)))


def _with_gateway(route: Route, gateways: dict[int, str]) -> Route:
    if route.gw or (route.scope or 0) >= SCOPE_LINK:
        return route
    return replace(route, gw=gateways.get(family_of(route.dst), ""))


def onlink(routes: Iterable[Route], addresses: Iterable[str]) -> frozenset[Route]:
    """Return the routes whose gateway is on the link although no subnet of the addresses says so.

    `addresses` are CIDRs, `routes` all those of the interface: one to the gateway's own subnet by a
    gateway hides that subnet.
    """
    routed = [route for route in routes if route.gw]
    subnets = [ip_network(address, strict=False) for address in addresses] if routed else []
    hiding = [ip_network(r.dst, strict=False) for r in routed if r.dst not in DEFAULTS.values()]
    return frozenset(route for route in routed if _is_onlink(route.gw, subnets, hiding))


_address = lru_cache(64)(ip_address)  # a node's pods have few gateways


def _is_onlink(gw: str, subnets: Iterable[_Network], hiding: Iterable[_Network]) -> bool:
    gateway = _address(gw)
    if gateway.version == 6 and gateway.is_link_local:
        return False
    bits = max((subnet.prefixlen for subnet in subnets if gateway in subnet), default=None)
    if bits is None:
        return True
    return any(network.prefixlen >= bits and gateway in network for network in hiding)


def in_main_table(routes: Iterable[Route]) -> tuple[Route, ...]:
    """Return the main table's routes, of those with one destination and priority the first."""
    chosen: dict[tuple[str, int], Route] = {}
    for route in routes:
        if route.table in MAIN_TABLES:
            chosen.setdefault((route.dst, route.priority), route)
    return tuple(chosen.values())


def best(routes: Iterable[Route]) -> tuple[Route, ...]:
    """Return the main table's route to each destination that a kernel with all of them takes."""
    chosen: dict[str, Route] = {}
    for route in in_main_table(routes):
        known = chosen.setdefault(route.dst, route)
        if route.priority < known.priority:
            chosen[route.dst] = route
    return tuple(chosen.values())
