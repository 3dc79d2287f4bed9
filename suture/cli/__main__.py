"""`python -m suture.cli`."""

from suture.cli import main

main()
