"""Assembly: models put together from the regions of others, regions left out, shared, swapped or reused."""
