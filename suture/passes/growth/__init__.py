"""Growth: wider axes, deeper stacks, coarse models and the way back, when to grow, and what is carried across."""
