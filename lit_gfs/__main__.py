"""``python -m lit_gfs``."""

from lit_gfs.cli import main

main()
