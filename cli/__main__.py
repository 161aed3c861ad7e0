"""`python -m compare2score.cli`, the same as `c2s`."""

from compare2score.cli import main

main()
