"""``python -m robustkd`` is the command ``robustkd``."""

from robustkd.cli import main

main()
