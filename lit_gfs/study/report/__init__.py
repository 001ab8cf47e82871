"""Reports: self-contained pages and their figures, from the tables of a study alone."""
