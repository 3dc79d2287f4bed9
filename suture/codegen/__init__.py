"""Code generation: kernels (`suture.ir.kernel`) become CUDA C++ and C++ text, and text becomes something to call."""
