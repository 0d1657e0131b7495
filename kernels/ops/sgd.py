"""One step of stochastic gradient descent for a list of parameters, in place, as torch.optim.SGD takes it.

g = -grad if maximize else grad;  g = g + weight_decay p
with momentum:  b = momentum b + (1 - dampening) g  (b = g at the first step);  g = g + momentum b if nesterov else b
p = p - lr g
"""

from kernels.integration.primitive import primitive


@primitive(
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, float lr, Tensor? lr_tensor, float momentum,"
    " float dampening, float weight_decay, bool nesterov, bool maximize, bool first, str backend) -> ()"
)
def sgd(  # type: ignore[no-untyped-def]
    params,
    grads,
    momentum_buffers,
    lr,
    lr_tensor,
    momentum,
    dampening,
    weight_decay,
    nesterov,
    maximize,
    first,
    backend,
):
    """Updates params and momentum_buffers; `first` fills the buffers; the rate is lr_tensor's value where it is given.

    Each gradient and each buffer has its parameter's shape; there are no buffers without momentum.
    Its code: sgd in kernels/{numpy,triton,cupy}/sgd.py.
    """
