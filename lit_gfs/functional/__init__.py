"""Pure functions of tensors: returns, losses, exploration, action distributions, and spectra of matrices."""
