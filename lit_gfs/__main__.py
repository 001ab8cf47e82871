"""``python -m lit_gfs``."""

try:
    from lit_gfs.cli import main

    main()
except KeyboardInterrupt:  # while everything is being imported
    raise SystemExit(130) from None
