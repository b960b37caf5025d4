"""`python -m service.cli`: the same as `capsctl`."""

from service.cli import main

main()
