"""The packages that a user trusts, besides the libraries that lit_gfs is built on."""

from __future__ import annotations

TRUSTED: set[str] = set()
"""Packages or modules; `lit_gfs.configuration.config_trust` adds and removes them."""


def is_trusted(path: str) -> bool:
    """Return whether the user trusts the package of an import path, such as ``my_package.networks.Trunk``.

    Args:
        path: A module, or an object in one.
    """
    return any(path == package or path.startswith(f"{package}.") for package in TRUSTED)


def trusted_packages() -> list[str]:
    """List the packages that the user trusts."""
    return sorted(TRUSTED)
