"""``python -m maemm``: what ``torchrun -m maemm`` needs."""

import sys

from maemm.cli import main

if __name__ == "__main__":
    sys.exit(main())
