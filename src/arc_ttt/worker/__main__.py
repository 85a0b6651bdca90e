"""`python -m arc_ttt.worker`: one worker process, for a device, or with the argument "synthesis" for programs."""

import sys

from arc_ttt.worker.serve import main

if __name__ == "__main__":
    sys.exit(main())
