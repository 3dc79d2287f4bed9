"""How message-passing programs come in: a graph's edges as one space, values that edges look up, sums in nodes."""
