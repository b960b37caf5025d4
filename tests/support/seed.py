"""The seed of tests that draw their own numbers: another at every run, told where one fails."""

import os
import secrets

SEED = int(os.environ.get("CAPS_TEST_SEED") or secrets.randbits(31))
