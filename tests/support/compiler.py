"""Whether the machine can compile kernels: only where it cannot may their tests be skipped."""

import shutil

import pytest

HAS_COMPILER = any(map(shutil.which, ("g++", "c++", "clang++")))
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="there is no C++ compiler")
