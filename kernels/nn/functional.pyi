from kernels.functional import *
