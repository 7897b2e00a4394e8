"""C++ kernels for the CPU, built on the machine that runs them; everything works, slower, without."""
