"""The fast C++ print."""
