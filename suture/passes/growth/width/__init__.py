"""Growth in width: linear maps of atoms that make them wider, and whether they keep the function."""
