from torch.nn.utils.fusion import *
