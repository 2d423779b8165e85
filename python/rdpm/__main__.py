"""`python -m rdpm`: the program, where its folder is not in PATH."""

import os
import sys

from .program import find

if __name__ == "__main__":
    program = find()
    os.execv(program, [program, *sys.argv[1:]])
