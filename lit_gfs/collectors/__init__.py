"""Collection of rollouts and evaluation: environments and a policy, stepped together."""
