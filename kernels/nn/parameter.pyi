from torch.nn.parameter import *
