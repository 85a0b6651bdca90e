"""Read and write training packs: many input-output pairs, grouped by their generator or task, in one compact file.

A file holds: magic (8 bytes), version (4, little-endian), length of the body (8), SHA-256 of the content (32), body.
The body is the content, compressed by lzma: length of the header (4), header (JSON, sorted names), then the pairs of
each group in the header's order. A pair is height, width and cells of the input, then of the output, a byte each.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import lzma
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from arc_ttt.errors import InputError
from arc_ttt.tasks.grids import Example, Grid

MAGIC = b"ARC-PACK"
"""The first bytes of every pack."""

PACK_VERSION = 1
"""Version of the file format."""

MAX_CONTENT_BYTES = 4 * 1024**3
"""Largest content that is read."""

_HEAD = struct.Struct("<8sIQ32s")
_LENGTH = struct.Struct("<I")

Pair: TypeAlias = tuple[Grid, Grid]


class PackError(InputError):
    """A pack is missing, damaged, or of another version."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Pairs that follow one rule.

    Args:
        name: "rearc/<id>" or "tasks/<id>".
        family: name of the family of the rule.
        split: "train" or "held-out".
        held_pairs: number of pairs at the end of a training group that are never trained on.
        content: bytes with the pairs, as in the file.
        starts: (N,) int64, where each pair begins in `content`.
        tokens: (N,) int32, length of each pair in the compact format.
    """

    name: str
    family: str
    split: str
    held_pairs: int
    content: bytes
    starts: NDArray[np.int64]
    tokens: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.starts)

    def pair(self, index: int) -> Pair:
        """Pair `index`, as read-only views into the content."""
        first, end = _grid_at(self.content, int(self.starts[index]))
        second, _ = _grid_at(self.content, end)
        return first, second

    def example(self, index: int) -> Example:
        """Pair `index` as a demonstration."""
        return Example(*self.pair(index))

    @property
    def training(self) -> range:
        """Indices of the pairs to train on; empty for a held-out group."""
        return range(len(self) - self.held_pairs) if self.split == "train" else range(0)

    @property
    def held(self) -> range:
        """Indices of the pairs to measure on."""
        return range(len(self.training), len(self))


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """A whole pack. `sha256` is the digest of its content: pairs and header."""

    header: Mapping[str, Any]
    groups: tuple[Group, ...]
    sha256: str


def grid_content(grid: Grid) -> bytes:
    """A grid as a pack holds it."""
    return bytes(grid.shape) + grid.tobytes()


def pair_bytes(pair: Pair) -> bytes:
    """A pair as a pack holds it; also the identity of the pair."""
    return grid_content(pair[0]) + grid_content(pair[1])


def pair_tokens(pair: Pair) -> int:
    """Tokens of a pair in the compact format: for each grid a marker, its cells, and an end for each row."""
    return sum(1 + grid.shape[0] * (grid.shape[1] + 1) for grid in pair)


def split_pairs(packed: bytes) -> list[bytes]:
    """The pairs of a group's bytes.

    Raises:
        PackError: the last pair is cut short.
    """
    starts, _, end = _scan(packed, 0, None)
    bounds = [*starts, end]
    return [packed[a:b] for a, b in itertools.pairwise(bounds)]


def write_pack(
    path: Path, header: Mapping[str, Any], groups: Sequence[tuple[Mapping[str, Any], Sequence[bytes]]]
) -> str:
    """Write a pack in one step and return the SHA-256 of its content.

    Args:
        path: the file.
        header: further entries of the header.
        groups: for each group a mapping with name, family, split and held_pairs, and its pairs as `pair_bytes`.
    """
    listed = [{**group, "pairs": len(pairs)} for group, pairs in groups]
    text = json.dumps({**header, "groups": listed}, sort_keys=True).encode()
    content = b"".join((_LENGTH.pack(len(text)), text, *(pair for _, pairs in groups for pair in pairs)))
    digest = hashlib.sha256(content)
    body = lzma.compress(content, preset=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(_HEAD.pack(MAGIC, PACK_VERSION, len(body), digest.digest()) + body)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return digest.hexdigest()


def read_pack(path: Path) -> Pack:
    """Read and check a pack.

    Raises:
        PackError: the file cannot be read, is no pack, is damaged or cut short, or is of another version.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PackError(f"{path}: cannot be read: {error.strerror or error}") from error
    if raw[:8] != MAGIC[: len(raw[:8])] or not raw:
        raise PackError(f"{path}: is no training pack")
    if len(raw) < _HEAD.size:
        raise PackError(f"{path}: is damaged: only {len(raw)} bytes are left of it")
    _, version, length, digest = _HEAD.unpack_from(raw)
    if version != PACK_VERSION:
        raise PackError(
            f"{path}: is a pack of version {version}; this program reads version {PACK_VERSION}. Build it again"
        )
    if len(raw) - _HEAD.size != length:
        raise PackError(f"{path}: is damaged: {len(raw) - _HEAD.size} bytes follow the head, {length} should")
    try:
        decoder = lzma.LZMADecompressor(format=lzma.FORMAT_XZ)
        content = decoder.decompress(raw[_HEAD.size :], MAX_CONTENT_BYTES)
    except lzma.LZMAError as error:
        raise PackError(f"{path}: is damaged: {error}") from error
    if not decoder.eof or hashlib.sha256(content).digest() != digest:
        raise PackError(f"{path}: is damaged: its content does not match its SHA-256")
    return _parse(path, content, digest.hex())


def _parse(path: Path, content: bytes, sha256: str) -> Pack:
    """The pack with this content. Raises PackError."""
    try:
        start = _LENGTH.size + _LENGTH.unpack_from(content)[0]
        header = json.loads(content[_LENGTH.size : start])
        groups = []
        for entry in header["groups"]:
            starts, tokens, start = _scan(content, start, entry["pairs"])
            fields = (entry["name"], entry["family"], entry["split"], entry["held_pairs"])
            groups.append(Group(*fields, content, np.array(starts, np.int64), np.array(tokens, np.int32)))
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise PackError(f"{path}: its content is not that of a pack: {error}") from error
    if start != len(content):
        raise PackError(f"{path}: {len(content) - start} bytes follow the last pair")
    return Pack(header, tuple(groups), sha256)


def _scan(content: bytes, start: int, count: int | None) -> tuple[list[int], list[int], int]:
    """Starts and token counts of `count` pairs (None: all) from `start` on, and the end of the last one."""
    starts: list[int] = []
    tokens: list[int] = []
    while len(starts) < count if count is not None else start < len(content):
        starts.append(start)
        length = 0
        for _ in range(2):
            if start + 2 > len(content):
                raise PackError("a pair is cut short")
            height, width = content[start], content[start + 1]
            start += 2 + height * width
            length += 1 + height * (width + 1)
        tokens.append(length)
    if start > len(content):
        raise PackError("a pair is cut short")
    return starts, tokens, start


def _grid_at(content: bytes, start: int) -> tuple[Grid, int]:
    """The grid that begins at `start`, and where it ends."""
    height, width = content[start], content[start + 1]
    cells = np.frombuffer(content, np.uint8, height * width, start + 2)
    return cells.reshape(height, width), start + 2 + height * width


def stream(seed: int, purpose: str, number: int) -> np.random.Generator:
    """A random generator that depends on seed, purpose and number alone."""
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{number}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
