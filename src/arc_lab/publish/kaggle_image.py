"""What is known of Kaggle's image: its Python, its packages, and packages in it that clash."""

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


@dataclass(frozen=True, slots=True)
class Image:
    """What Kaggle's image holds. packages: version by distribution, in the normal form of its name."""

    python: str
    glibc: str
    packages: dict[str, str]


@dataclass(frozen=True, slots=True)
class Clash:
    """Two packages that fail together although neither requires otherwise, as versions of each and what happens."""

    one: Requirement
    other: Requirement
    effect: str

    def told(self, packages: Mapping[str, str]) -> str:
        """The clash in an image's packages, with their versions; empty if they do not hold both."""
        held = [(asked, packages.get(canonicalize_name(asked.name), "")) for asked in (self.one, self.other)]
        if not all(version and asked.specifier.contains(version, prereleases=True) for asked, version in held):
            return ""
        return f"{' and '.join(f'{asked.name} {version}' for asked, version in held)}: {self.effect}"


CLASHES = (
    Clash(
        Requirement("peft>=0.19"),
        Requirement("torchao<0.16"),
        "peft raises an ImportError where it gives a plain linear layer its adapter",
    ),
)


def read_image(path: Path = IMAGE) -> Image:
    """The description of an image: wheels/image.json, or the setup.json of a run on Kaggle. Raises InputError."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        held = {**body.get("near", {}), **body["packages"]}
        packages = {str(canonicalize_name(name)): str(version) for name, version in held.items()}
        return Image(".".join(str(body["python"]).split(".")[:2]), str(body["glibc"]), packages)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not a description of an image: {type(error).__name__}: {error}") from error
