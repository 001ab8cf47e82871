"""Results of a study: tables of its cells, and the figures that follow from them."""
