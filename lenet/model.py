"""The network."""

from collections import OrderedDict

from torch import Tensor

import kernels.nn as nn


class LeNet(nn.Module):
    """LeNet-5 as it is taught today: ReLU and max-pooling, five layers, 61,706 parameters.

    The input is (N, in_channels, 32, 32), floating point; the output is (N, num_classes), one score a class.
    Names, shapes and printed form are those of the same network in torch.nn, so state_dicts go both ways.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x, epilogue="relu_max_pool2d")  # (N, 6, 14, 14)
        x = self.conv2(x, epilogue="relu_max_pool2d")  # (N, 16, 5, 5)
        x = x.flatten(1)
        x = self.fc1(x, activation="relu")
        x = self.fc2(x, activation="relu")
        return self.fc3(x)

    def as_sequential(self) -> nn.Sequential:
        """The network as a sequence of its modules, which kernels.FusedStep reads."""
        return nn.Sequential(
            OrderedDict(
                conv1=self.conv1,
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=self.conv2,
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                fc1=self.fc1,
                relu3=nn.ReLU(),
                fc2=self.fc2,
                relu4=nn.ReLU(),
                fc3=self.fc3,
            )
        )
