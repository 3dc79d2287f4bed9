"""How a model comes in: torch.export, checkpoints and saved graphs, the script language."""
