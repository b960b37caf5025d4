"""Whether the machine can compile kernels: only where it cannot may their tests be skipped."""

import shutil

HAS_COMPILER = any(map(shutil.which, ("g++", "c++", "clang++")))
