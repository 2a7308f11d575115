"""`python -m hotpatchd`."""

from hotpatchd.cli import main

main()
