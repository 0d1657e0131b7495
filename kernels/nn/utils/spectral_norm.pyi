from torch.nn.utils.spectral_norm import *
