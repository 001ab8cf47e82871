"""Search of options: trials of a study's cells on seeds of their own, and the choices that follow."""
