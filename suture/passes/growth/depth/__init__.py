"""Growth in depth: the blocks of a stack in a new order, new blocks among them, and whether that keeps the function."""
