"""Our GPU kernels counted without a GPU: what they do, the bounds that follow, and what a launch costs on the host."""
