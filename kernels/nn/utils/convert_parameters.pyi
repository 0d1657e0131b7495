from torch.nn.utils.convert_parameters import *
