"""Check kernel-metadata.json and dataset-metadata.json as the kaggle command line and the site read them.

The command line refuses some mistakes, the site refuses others, and some are refused by nobody: an unknown field is
ignored, and a missing enable_internet means true.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from arc_ttt.errors import InputError

MOST_CODE_BYTES = 900_000
"""Most bytes of kernel.py; the site refuses "1 megabytes"."""

PLACEHOLDER = "OWNER"
"""Stands for the user's name on Kaggle until it is filled in."""

PLACEHOLDERS = (PLACEHOLDER, "MODEL", "VARIATION")
"""Parts of a path or source that the user has to fill in."""

SLUG = re.compile(r"[A-Za-z0-9_-]+/[a-z0-9]+(-[a-z0-9]+)*")
SOURCE = re.compile(r"[A-Za-z0-9_-]+/[A-Za-z0-9-]{3,}(/\d+)?")
FIELD_TYPES: dict[str, type] = {
    "id": str,
    "id_no": int,
    "title": str,
    "code_file": str,
    "language": str,
    "kernel_type": str,
    "is_private": bool,
    "enable_gpu": bool,
    "enable_tpu": bool,
    "enable_internet": bool,
    "machine_shape": str,
    "dataset_sources": list,
    "competition_sources": list,
    "kernel_sources": list,
    "model_sources": list,
    "keywords": list,
    "docker_image_pinning_type": str,
    "docker_image": str,
}
RETIRED = {"NvidiaTeslaP100": "NvidiaTeslaT4", "TpuV38": "TpuV5E8", "Tpu1VmV38": "TpuV5E8"}
SHAPES = ("NvidiaTeslaT4", "NvidiaL4", "NvidiaL4X1", "NvidiaTeslaT4Highmem", "NvidiaTeslaA100", "NvidiaH100")


def competition_of(body: Mapping[str, Any]) -> str:
    """The competition that a kernel's metadata name. Raises InputError if they name none."""
    if not (named := body.get("competition_sources")):
        raise InputError("kernel-metadata.json names no competition under competition_sources")
    return str(named[0])


def read_metadata(path: Path) -> dict[str, Any]:
    """The content of a metadata file. Raises InputError if it is no JSON object."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(body, dict):
        raise InputError(f"{path.name} is not an object")
    return body


def kernel_problems(body: dict[str, Any], root: Path) -> list[str]:
    """Everything wrong with the kernel-metadata.json of folder `root`, each with advice; empty if nothing is wrong."""
    found = []
    for name, value in body.items():
        if name not in FIELD_TYPES:
            near = difflib.get_close_matches(name, FIELD_TYPES, 1, 0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            hint = "; the field is machine_shape" if name == "accelerator" else hint
            found.append(f"{name}: kaggle ignores this field without a word{hint}")
        elif not isinstance(value, FIELD_TYPES[name]) or (FIELD_TYPES[name] is int and isinstance(value, bool)):
            found.append(f"{name} is {json.dumps(value)}: write a value of type {FIELD_TYPES[name].__name__}")
    if found:
        return found
    text = json.dumps(body)
    if PLACEHOLDER in text:
        found.append(f"replace {PLACEHOLDER} by your Kaggle user name")
    slug = str(body.get("id", "")).partition("/")[2]
    if not SLUG.fullmatch(body.get("id", "")) or len(slug) < 5:
        found.append('id: write "user/slug", the slug at least 5 characters of a-z, 0-9 and dashes')
    title = body.get("title", "")
    if len(title) < 5:
        found.append("title: at least 5 characters")
    elif re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") != slug:
        found.append(f"title {title!r} makes another slug than id: kaggle would name the kernel after the title")
    code = root / str(body.get("code_file", ""))
    if not code.is_file():
        found.append(f"code_file {body.get('code_file')!r}: there is no such file")
    elif code.stat().st_size >= MOST_CODE_BYTES:
        found.append(
            f"code_file has {code.stat().st_size} bytes; Kaggle takes less than 1 MB, stay below {MOST_CODE_BYTES}"
        )
    if body.get("language") != "python" or body.get("kernel_type") != "script":
        found.append('language must be "python" and kernel_type "script"')
    if body.get("enable_internet") is not False:
        found.append(
            "enable_internet: write false; kaggle takes a missing value as true, and the competition refuses it"
        )
    if body.get("enable_gpu") is not True:
        found.append("enable_gpu: write true")
    if body.get("is_private") is not True:
        found.append("is_private: write true, or everyone can copy the kernel during the competition")
    found += _shape_problems(body.get("machine_shape", ""))
    found += _source_problems(body)
    if body.get("docker_image_pinning_type", "original") not in ("original", "latest"):
        found.append('docker_image_pinning_type: write "original" or "latest"')
    return found


def dataset_names(body: dict[str, Any]) -> list[str]:
    """The owner/slug of each dataset of a kernel, without versions."""
    return ["/".join(str(source).split("/")[:2]) for source in body.get("dataset_sources") or []]


def mount_points(body: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Where Kaggle mounts each source of a kernel that can hold a model: in today's layout and in the older one."""
    found = {}
    for source in map(str, body.get("model_sources") or []):
        if source.count("/") == 4:
            owner, model, framework, variation, version = source.split("/")
            end = f"{model}/{framework.lower()}/{variation}/{version}"
            found[source] = (f"/kaggle/input/models/{owner}/{end}", f"/kaggle/input/{end}")
    for name, kind in (("dataset_sources", "datasets"), ("kernel_sources", "notebooks")):
        for source in map(str, body.get(name) or []):
            owner, _, rest = source.partition("/")
            slug = rest.partition("/")[0]
            found[source] = (f"/kaggle/input/{kind}/{owner}/{slug}", f"/kaggle/input/{slug}")
    return found


def source_of(path: str, body: dict[str, Any]) -> str:
    """The source of a kernel that a path on Kaggle leads into; empty if none does."""
    whole = PurePosixPath(path.lower())
    points = mount_points(body).items()
    return next((source for source, both in points if any(whole.is_relative_to(point.lower()) for point in both)), "")


def model_path_problem(path: str, body: dict[str, Any]) -> str:
    """What is wrong with a model.path, held against the sources of kernel-metadata.json; empty if nothing is."""
    if left := [name for name in PLACEHOLDERS if name in PurePosixPath(path).parts]:
        return f"model.path {path}: replace {', '.join(left)} by the names of your model"
    if source_of(path, body):
        return ""
    points = mount_points(body)
    models = [points[source][0] for source in map(str, body.get("model_sources") or []) if source in points]
    if models:
        return f"model.path {path} is in no source of kernel-metadata.json: write {' or '.join(models)}"
    advice = "name its model under model_sources as owner/model/framework/variation/version"
    return f"model.path {path} is in no source of kernel-metadata.json: {advice}"


def _shape_problems(shape: str) -> list[str]:
    if shape in RETIRED:
        return [f"machine_shape {shape} is retired, Kaggle would take {RETIRED[shape]}: write that"]
    if not shape:
        return ['machine_shape is missing: write "NvidiaTeslaT4", which is two T4, or "NvidiaL4", four L4']
    if shape not in SHAPES:
        return [f"machine_shape {shape!r} is not known: NvidiaTeslaT4 is two T4, NvidiaL4 is four L4"]
    return []


def _source_problems(body: dict[str, Any]) -> list[str]:
    found = []
    for source in body.get("dataset_sources", []):
        if not SOURCE.fullmatch(str(source)):
            found.append(f'dataset_sources: {source!r} is not "user/slug"')
    if not body.get("dataset_sources"):
        found.append("dataset_sources is empty: the kernel would run without its own code and wheels")
    if not body.get("competition_sources"):
        found.append("competition_sources is empty: the kernel would find no tasks")
    elif len(body["competition_sources"]) > 1:
        found.append(
            "competition_sources: name one competition only, else the kernel has to guess whose tasks it is for"
        )
    for source in body.get("model_sources", []):
        parts = str(source).split("/")
        if len(parts) != 5 or not parts[-1].isdigit():
            found.append(
                f'model_sources: {source!r} is not "owner/model/framework/variation/version", version a number'
            )
        elif left := [name for name in PLACEHOLDERS[1:] if name in parts]:
            found.append(f"model_sources: {source!r}: replace {', '.join(left)} by the names of your model")
    return found


def dataset_problems(body: dict[str, Any]) -> list[str]:
    """Everything wrong with a dataset-metadata.json."""
    found = []
    if not SLUG.fullmatch(str(body.get("id", ""))) or not 6 <= len(str(body["id"]).partition("/")[2]) <= 50:
        found.append('id: write "user/slug", the slug 6 to 50 characters of a-z, 0-9 and dashes')
    elif str(body["id"]).startswith(f"{PLACEHOLDER}/"):
        found.append(f"id: replace {PLACEHOLDER} in kernel-metadata.json by your Kaggle user name, then bundle again")
    if not 6 <= len(str(body.get("title", ""))) <= 50:
        found.append("title: 6 to 50 characters")
    licenses = body.get("licenses")
    if not isinstance(licenses, list) or len(licenses) != 1:
        found.append("licenses: exactly one")
    return found


def source_differences(asked: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """What Kaggle holds otherwise than asked: a line each for sources, machine, internet and visibility."""
    found = []
    for name in ("dataset_sources", "competition_sources", "model_sources", "kernel_sources"):
        kept = {str(source).lower() for source in stored.get(name) or []}
        for source in asked.get(name) or []:
            whole = str(source).lower()
            unpinned = re.sub(r"/\d+$", "", whole) if name in ("dataset_sources", "kernel_sources") else whole
            if not {whole, unpinned} & kept:
                found.append(f"{name}: {source} was dropped; is the name right, and may you use it?")
    for name in ("machine_shape", "enable_internet", "enable_gpu", "is_private"):
        if name in asked and stored.get(name) != asked[name]:
            found.append(f"{name} is {stored.get(name)!r} on Kaggle, {asked[name]!r} was asked for")
    return found
