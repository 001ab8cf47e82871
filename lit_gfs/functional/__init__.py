"""Pure functions of tensors: returns, losses, exploration, distributions of actions."""
