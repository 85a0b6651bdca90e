"""Describe Kaggle's image: its Python, its packages, and packages in it that clash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from arc_lab.folders import ROOT
from arc_ttt.errors import InputError

WHEELS = ROOT / "wheels"
IMAGE = WHEELS / "image.json"
"""The description of the image that the bundle is made for."""

IMAGE_HELP = "an image's description, or the setup.json of a run on Kaggle (default: wheels/image.json)"


@dataclass(frozen=True, slots=True)
class Image:
    """What Kaggle's image holds.

    Args:
        python: version of Python, as 3.12.
        glibc: version of glibc, as 2.35.
        packages: version by distribution, in the normal form of its name.
    """

    python: str
    glibc: str
    packages: dict[str, str]


@dataclass(frozen=True, slots=True)
class Clash:
    """Two packages that fail together, although neither's requirements exclude the other.

    Args:
        one: versions of the first package.
        other: versions of the second package.
        effect: what happens.
    """

    one: Requirement
    other: Requirement
    effect: str

    def found_in(self, packages: Mapping[str, str]) -> str:
        """The clash in words, if both are among an image's packages; else empty."""
        held = [(one, packages.get(canonicalize_name(one.name), "")) for one in (self.one, self.other)]
        if not all(version and one.specifier.contains(version, prereleases=True) for one, version in held):
            return ""
        return f"{' and '.join(f'{one.name} {version}' for one, version in held)}: {self.effect}"


CLASHES = (
    Clash(
        Requirement("peft>=0.19"),
        Requirement("torchao<0.16"),
        "peft raises an ImportError when it gives a plain linear layer its adapter",
    ),
)


def read_image(path: Path = IMAGE) -> Image:
    """The description of an image: wheels/image.json, or the setup.json of a run on Kaggle.

    Raises:
        InputError: the file is neither.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        held = {**body.get("near", {}), **body["packages"]}
        packages = {str(canonicalize_name(name)): str(version) for name, version in held.items()}
        return Image(".".join(str(body["python"]).split(".")[:2]), str(body["glibc"]), packages)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not a description of an image: {type(error).__name__}: {error}") from error
