"""`python -m lmcodec`: the `lmcodec` command."""

from lmcodec.cli.entry import lmcodec

lmcodec()
