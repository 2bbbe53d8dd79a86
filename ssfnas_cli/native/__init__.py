"""Our own C++ kernels: compiled by the machine's compiler when first wanted, called through ctypes."""
