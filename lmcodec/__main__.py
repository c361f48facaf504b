"""`python -m lmcodec`: the `lmcodec` command."""

from lmcodec.cli.main import main

main()
