"""Entry point of the process that builds one stage: `python -m tasks.child SPEC`."""

import sys
from pathlib import Path

from tasks.build import main

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
