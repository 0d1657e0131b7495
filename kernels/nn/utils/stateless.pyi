from torch.nn.utils.stateless import *
