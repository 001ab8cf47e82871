"""Pure functions of tensors: returns, losses, exploration, and action distributions."""
