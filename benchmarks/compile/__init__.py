"""Our GPU kernels compiled for GPUs that are not here: registers, spills, shared memory, tensor cores."""
