"""Shared fixtures. Tests of a front end are skipped where its compiler is not installed."""

import importlib.util

import pytest

HAS_TRITON = importlib.util.find_spec("triton") is not None and importlib.util.find_spec("torch") is not None
collect_ignore = [] if HAS_TRITON else ["test_triton.py", "test_triton_driver.py", "test_mutations.py"]


def cuda_compiler_problem():
    from ptxsim.cuda import compile_to_ptx
    from ptxsim.errors import CompileError

    try:
        compile_to_ptx('extern "C" __global__ void probe() {}')
    except CompileError as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def cuda_module():
    """The module with the CUDA C++ test kernels."""
    problem = cuda_compiler_problem()
    if problem:
        pytest.skip(problem)
    import kernels_cuda
    from ptxsim.cuda import RawModule

    return RawModule(code=kernels_cuda.SOURCE)
