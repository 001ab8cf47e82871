"""Studies: grids of runs that are planned, executed, collected and reported by one command."""
