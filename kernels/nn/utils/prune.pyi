from torch.nn.utils.prune import *
