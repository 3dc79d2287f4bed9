"""The CUDA C++ print, what compiles and launches it, and what is done otherwise on a GPU."""
