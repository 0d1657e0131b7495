"""Kernels written in PTX, for instructions that compilers emit in few of their forms."""

import numpy as np
import ptxsim

HEADER = ".version 8.8\n.target sm_100a\n.address_size 64\n"


def lanes(body: str, *inputs: np.ndarray, out: np.dtype) -> np.ndarray:
    """What 32 threads leave in %d when they run `body` on %a, %b, %c: their elements of the inputs."""
    arrays = [np.ascontiguousarray(x) for x in inputs]
    result = np.zeros(32, out)
    names = dict(zip("dabc", [result, *arrays], strict=False))
    declare = " ".join(f".reg .b{8 * x.itemsize} %{name}; .reg .b64 %p_{name};" for name, x in names.items())
    address = " ".join(
        f"ld.param.u64 %p_{name}, [{name}]; mad.wide.u32 %p_{name}, %i, {x.itemsize}, %p_{name};"
        for name, x in names.items()
    )
    load = " ".join(f"ld.global.b{8 * names[n].itemsize} %{n}, [%p_{n}];" for n in list(names)[1:])
    parameters = ", ".join(f".param .u64 {name}" for name in names)
    text = f"""{HEADER}.visible .entry lanes({parameters}) {{
  .reg .b32 %i; .reg .pred %p<4>; {declare}
  mov.u32 %i, %tid.x; {address} {load}
  {body}
  st.global.b{8 * result.itemsize} [%p_d], %d; ret;
}}"""
    ptxsim.launch(ptxsim.Module(text).kernels["lanes"], 1, 32, list(names.values()))
    return result
