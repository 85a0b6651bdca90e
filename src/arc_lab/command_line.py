"""How commands end that can be interrupted and go on when they are started again."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence

from arc_ttt.errors import ArcError, InputError

Main = Callable[[Sequence[str]], int]


def resumable(name: str) -> Callable[[Main], Main]:
    """Decorate the `main` of command `name`, so that it ends with one line instead of a traceback.

    It returns 130 when it was interrupted, 2 for wrong input, and 1 for another error of ours or of the disk.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def run(argv: Sequence[str]) -> int:
            try:
                return main(argv)
            except KeyboardInterrupt:
                print(f"arc_lab {name}: interrupted; the same command goes on", file=sys.stderr)
                return 130
            except BrokenPipeError:  # the reader of our output is gone, which the caller knows to handle
                raise
            except (ArcError, OSError) as error:
                print(f"arc_lab {name}: {error}", file=sys.stderr)
                return 2 if isinstance(error, InputError) else 1

        return run

    return decorate
