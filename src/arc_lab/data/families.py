"""Group ARC-AGI-1 training tasks into families: tasks whose rules are so similar that one gives away another.

A split by task id would count "flip left to right" as unseen after a training on "flip upside down". Families are held
out whole. Two tasks are in one family when

- the verifier of each reproduces the outputs of the other's generated pairs under some symmetry (measured over all 400
  x 400 verifiers and generators, with up to six small pairs each; coincidences of tiny grids were removed by hand), or
- at least three quarters of their verifiers are one sequence of operations up to constants, and reading them confirms
  that they are alike, or
- a reader judged them to be variations of one idea (the comment after each family names it).

Every other task is a family of its own.
"""

from __future__ import annotations

import hashlib
from functools import cache

HELD_OUT_TASKS = 40
"""Tasks from which on no further family is held out."""

LARGEST_HELD_OUT = 8
"""Largest family, in tasks, that may be held out; a larger one would be a fifth of the held-out tasks."""

# One family a line: its task ids, then what they have in common.
_SHARED = """
3c9b0459 6150a2bd 67a3c6ac 68b16354 74dd1130 9dfd6313 ed36ccf7  whole grid turned or flipped
3af2c5a8 46442a0e 496994bd 4c4377d9 62c24649 67e8384a 6d0aefbc 6fa7a44f 7fe24cdd 8be77c9e 8d5021e8 a416b8f3 c9e6f938 \
 f25ffba3 963e52fc  the grid beside turned copies of itself
0dfd9992 29ec7d0e 484b58aa c3f564a4 05269061 caa06a1f f9012d9b  a periodic pattern restored or continued
b8825c91 dc0a314f ff805c23 9ecd008a 73251a56 f9012d9b  a symmetric pattern restored
a3df8b1e e179c5f4  a ball thrown between walls
0520fde7 3428a4f5 1b2d62fb 94f9d214 99b1bc43 f2829549 fafffa47 ce4f8723 6430c8c4 dae9d2b5 \
 e98196ab cf98881b  two panels joined cell by cell
75b8110e a68b268e  panels laid over each other
dbc1a6ce ded97339 40853293 22168020 070dd51e 06df4c85 cbded52d 22eb0ac0 1f876c06 56ff96f3 ba97ae07 \
 equal cells joined by lines
9172f3a0 c59eb873 f25fbde4 b91ae062 ac0a08a4  cells made larger
b1948b0a c8f0f002 d511f180 0d3d703e  colours exchanged cell by cell
321b1fc6 e76a88a6  a pattern copied onto grey places
4938f0c2 4c5c2cf0 e40b9e2f  a figure completed to symmetry about its centre
60b61512 b27ca6d3 50cb2852 d5d6de2d 543a7ed5 bb43febb 6f8cd79b b6afb2da  boxes filled, or given a border or interior
0b148d64 23b5c85d 32597951 6d75e8bb a87f7484 be94b721 1cf80156 a61ba2ce 72ca375d d9fac9be b9b7f026 445eab21 \
 2dc579da 39a8645d a740d043 8efcae92 6ecd11f4 1f85a75f ae4f1146 e50d258f 5117e062 f8ff0b80  one object picked
00d62c1b 7b6016b9 a5313dff 83302e8f  enclosed cells filled
007bbfb7 c3202e5a c3e719e8 cce03e0d  the grid as its own tile, by colour
c0f76784 6cf79266 e8593010  holes recoloured by size or shape
1e0a9b12 3906de3d beb8660c  cells fall
25d8a9c8 a85d4709  rows recoloured by their contents
08ed6ac7 6e82a1ae d2abd087 67385a82 810b9b61 b230c067 a61f2674 ea32f347 694f12f3  objects recoloured by size or form
4258a5f9 dc1df850 b60334d2 31aa019c ce22a75a 0ca9ddb6 3befdf3e  marks drawn around cells
2dee498d 7b7f7511 d10ecb37 5bd6f4ac  a fixed part of the grid
7f4411dc 3631a71a 7e0986d6 42a50994 3f7978a0  noise removed
4be741c5 746b3537 90c28cc7  stripes or blocks shrunk to a cell each
d0f5fe59 d631b094 feca6190 f5b8619d 10fcaaa3 c48621e2 b190f7f5  counts and repetitions
a699fb00 ba26e723 d8c310e9 017c7c7b 8eb1be9a  a row pattern continued
d13f3404 a65b410d 3bd67248 d037b0a7 99fa7670  lines shot from cells
"""


@cache
def families() -> dict[str, str]:
    """The family's name by task id, for families of more than one task. The name is the least id of the family.

    A task that two lines name joins the two families.
    """
    named: dict[str, str] = {}
    for line in _SHARED.replace("\\\n", "").strip().splitlines():
        members = {word for word in line.split() if _is_id(word)}
        members |= {task_id for task_id, name in named.items() if name in {named.get(m) for m in members}}
        named |= dict.fromkeys(members, min(members))
    return named


def _is_id(word: str) -> bool:
    return len(word) == 8 and all(c in "0123456789abcdef" for c in word)


def family_of(task_id: str) -> str:
    """Name of the family of any task; a task without relatives is a family of its own."""
    return families().get(task_id, task_id)


@cache
def held_out_families() -> frozenset[str]:
    """Families that no training may see: about 40 of the 400 tasks, always the same.

    Families are taken in the order of a hash of their names, so that neither size nor age matters. Families of more
    than LARGEST_HELD_OUT tasks are left for training.
    """
    members: dict[str, int] = {}
    for task_id in arc_training_ids():
        name = family_of(task_id)
        members[name] = members.get(name, 0) + 1
    chosen: list[str] = []
    total = 0
    for name in sorted(members, key=lambda n: hashlib.sha256(n.encode()).digest()):
        if total < HELD_OUT_TASKS and members[name] <= LARGEST_HELD_OUT:
            chosen.append(name)
            total += members[name]
    return frozenset(chosen)


@cache
def arc_training_ids() -> tuple[str, ...]:
    """Ids of the 400 public training tasks."""
    from arc_lab.data.datasets import load_dataset

    return tuple(sorted(load_dataset("training").loaded.test_counts))
