"""`arc-lab bundle`: make the folder that becomes the kernel's dataset on Kaggle.

The folder is flat, because an upload leaves out folders by default, and its names hold no character that an upload
refuses. It holds arc_ttt, never arc_lab: that knows the tasks' solutions.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from arc_lab.command_line import add_json, json_document, make_parser, print_table, reports_errors
from arc_lab.folders import ROOT, Build, current_build
from arc_lab.publish.kaggle_image import IMAGE, IMAGE_HELP, WHEELS, read_image
from arc_lab.publish.metadata import dataset_names, read_metadata
from arc_lab.publish.wheels import SETS, Wheel, defect, members, read_lock, wheel_options
from arc_ttt.bootstrap.mounts import MANIFEST
from arc_ttt.checkpoints.folders import read_config
from arc_ttt.errors import InputError

BUNDLE = ROOT / "build" / "bundle"
"""The folder of the bundle, unless another is chosen."""

SAFE_NAME = re.compile(r"[A-Za-z0-9._-]+")
"""Names that an upload takes."""

MOST_MODEL_BYTES = 2 * 10**9
"""A larger model is better mounted as a Kaggle model."""

MODEL_FILES = ("*.json", "*.safetensors", "tokenizer.model")
METADATA = "dataset-metadata.json"
PROJECT_WHEELS = "arc_ttt-*.whl"
WHEEL_TEXT = "Wheel-Version: 1.0\nGenerator: arc_lab bundle\nRoot-Is-Purelib: true\nTag: py3-none-any\n"

EXAMPLES = ("arc-lab bundle", "arc-lab bundle --set unsloth --model local/xs/model")


def project_files(build: Build, root: Path = ROOT) -> dict[str, bytes]:
    """The files of the project's wheel: arc_ttt, build.json with the commit, and what makes it a wheel.

    It holds no arc_lab and no console script.
    """
    info = f"arc_ttt-{build.version}.dist-info"
    sources = [path for path in sorted((root / "src" / "arc_ttt").rglob("*")) if path.is_file()]
    files = {
        str(path.relative_to(root / "src")): path.read_bytes() for path in sources if "__pycache__" not in path.parts
    }
    files["arc_ttt/build.json"] = json.dumps({"version": build.version, "commit": build.stamp}).encode()
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: arc-ttt\nVersion: {build.version}\n".encode()
    files[f"{info}/WHEEL"] = WHEEL_TEXT.encode()
    files[f"{info}/licenses/LICENSE"] = (root / "LICENSE").read_bytes()
    record = "".join(f"{path},sha256={_record_digest(body)},{len(body)}\n" for path, body in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    return files


def build_wheel(folder: Path, build: Build, root: Path = ROOT) -> Path:
    """Write the project's wheel. The same sources give the same bytes."""
    wheel = folder / f"arc_ttt-{build.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, body in project_files(build, root).items():
            archive.writestr(zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0)), body, zipfile.ZIP_DEFLATED)
    return wheel


def outdated(bundle: Path) -> str:
    """Why a bundle does not hold this project's code as it is here; empty if it does.

    Every file in its wheel is compared, because the stamp of a changed tree is the same after further changes.
    """
    if not (bundle / MANIFEST).is_file():
        return f"there is no bundle in {bundle}"
    wheels = sorted(bundle.glob(PROJECT_WHEELS))
    if not wheels:
        return "the bundle has no arc_ttt wheel"
    held, build = read_metadata(bundle / MANIFEST).get("commit"), current_build()
    if held != build.stamp:
        return f"the bundle is made from commit {held}, the sources are at {build.stamp}"
    wanted = project_files(build)
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                files = {name: archive.read(name) for name in archive.namelist()}
        except Exception as error:  # damage shows as many kinds of errors, zlib's own among them
            return f"{wheel.name} is damaged: {error}"
        if files != wanted:
            names = {name for name in files.keys() | wanted.keys() if files.get(name) != wanted.get(name)}
            first = min(names, key=lambda name: (".dist-info/" in name, name))
            return f"{wheel.name} is not made from the sources here: {first} differs"
    return ""


def _record_digest(body: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode()


def build_bundle(
    into: Path,
    wheels: Iterable[Wheel],
    *,
    dataset: str,
    model: Path | None = None,
    wheel_folder: Path = WHEELS,
    options: str = "",
) -> list[Path]:
    """Make the folder anew and return its files.

    Args:
        into: the folder.
        wheels: the wheels to put in, beside the project's.
        dataset: owner/slug of the dataset.
        model: folder of a small model to put in.
        wheel_folder: where the wheels are.
        options: options of `arc-lab wheels` that fetch what is missing, for advice.

    Raises:
        InputError: a wheel is missing or damaged, a name is not safe, or the model cannot be used or is too large.
    """
    listed = list(wheels)
    if problems := [f"{wheel.file} is {wrong}" for wheel in listed if (wrong := defect(wheel, wheel_folder))]:
        raise InputError(f"{problems[0]}: run arc-lab wheels{options} first")
    if into.is_dir() and any(into.iterdir()) and not (into / MANIFEST).is_file():
        raise InputError(f"{into} holds other things: give --into a new folder")
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    for wheel in listed:
        shutil.copyfile(wheel_folder / wheel.file, into / wheel.file)
    if model is not None:
        _copy_model(model, into)
    put_project(into, [{"file": wheel.file, "sha256": wheel.sha256, "size": wheel.size} for wheel in listed])
    about = {"title": dataset_title(dataset), "id": dataset, "licenses": [{"name": "other"}]}
    (into / METADATA).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    files = sorted(into.iterdir())
    if unsafe := [path.name for path in files if not SAFE_NAME.fullmatch(path.name)]:
        raise InputError(f"{unsafe[0]}: an upload may refuse this name; use letters, digits, dot, dash and underscore")
    return files


def put_project(bundle: Path, others: Sequence[dict[str, Any]]) -> None:
    """Replace the project's wheel in a bundle by one made from the sources here, and write the manifest.

    Args:
        bundle: folder of the bundle.
        others: the manifest's entries for the other wheels.
    """
    for old in bundle.glob(PROJECT_WHEELS):
        old.unlink()
    build = current_build()
    own = build_wheel(bundle, build)
    rows = [*others, {"file": own.name, "sha256": _digest(own), "size": own.stat().st_size}]
    manifest = {"version": build.version, "commit": build.stamp, "wheels": rows}
    (bundle / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def dataset_title(dataset: str) -> str:
    """A title that Kaggle takes (6 to 50 characters), from the dataset's slug."""
    return dataset.partition("/")[2].replace("-", " ")[:50].ljust(6, "s")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_files(folder: Path) -> tuple[list[Path], int]:
    """The files of a model that are put into a bundle, and their size in bytes."""
    files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)})
    return files, sum(path.stat().st_size for path in files)


def _copy_model(model: Path, into: Path) -> None:
    read_config(model)
    files, size = model_files(model)
    if size > MOST_MODEL_BYTES:
        advice = "make it a Kaggle model and name it under model_sources in kernel-metadata.json"
        raise InputError(f"{model} has {size / 1e9:.1f} GB, too much for the bundle: {advice}")
    for path in files:
        shutil.copyfile(path, into / path.name)


def make_bundle(into: Path, chosen: str = SETS[0], image: Path = IMAGE, model: Path | None = None) -> list[Path]:
    """Make a bundle for the Python of an image, under the name in kernel-metadata.json, and return its files.

    Args:
        into: the folder.
        chosen: the set of wheels.
        image: file with the image's description.
        model: folder of a small model to put in.

    Raises:
        InputError: as `build_bundle` does.
    """
    dataset = (dataset_names(read_metadata(ROOT / "kernel-metadata.json")) or [""])[0]
    wheels = members(read_lock(), chosen, read_image(image).python)
    return build_bundle(into, wheels, dataset=dataset, model=model, options=wheel_options(chosen, image))


@reports_errors("bundle")
def main(argv: Sequence[str]) -> int:
    """Run the bundle command. Returns 0, or 2 if no bundle could be made."""
    parser = make_parser("bundle", __doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--set", choices=SETS, default=SETS[0], help="wheels to put in")
    add("--image", type=Path, default=IMAGE, metavar="FILE", help=IMAGE_HELP)
    add("--model", type=Path, metavar="DIR", help="folder of a small model to put in")
    add("--into", type=Path, default=BUNDLE, metavar="DIR", help="the folder, made anew (default: build/bundle)")
    add_json(parser)
    options = parser.parse_args(argv)
    files = make_bundle(options.into, options.set, options.image, options.model)
    dataset = read_metadata(options.into / METADATA)["id"]
    sizes = {path.name: path.stat().st_size for path in files}
    commit = current_build().stamp
    megabytes = sum(sizes.values()) / 1e6
    with json_document(options.json) as document:
        document |= {"folder": str(options.into), "dataset": dataset, "commit": commit, "bytes": sizes}
        title = f"{options.into}: {megabytes:.0f} MB for the dataset {dataset}, made from commit {commit}"
        print_table(title, ("file", "MB"), [(name, f"{size / 1e6:.2f}") for name, size in sizes.items()])
    return 0
