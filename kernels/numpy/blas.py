"""NumPy's BLAS on one thread: its own threads wait for each other in every small product, which is ruinous where
something else holds a core.
"""

import os
import threading
from typing import Any

from threadpoolctl import ThreadpoolController

STAYS_SINGLE = 1 << 18  # multiplications; OpenBLAS starts threads for larger products only
_libraries = ThreadpoolController().select(user_api="blas").lib_controllers
# Multiplications of a product of matrices that are multiplied as they lie. OpenBLAS has such code for AVX-512: packing costs
# a quarter as much again, a transposed matrix more than transposing takes. Elsewhere it packs all, and pieces only cost
SMALL_PRODUCT = 10**6 * any(
    getattr(library, "architecture", "").lower() in ("skylakex", "cooperlake", "sapphirerapids")
    for library in _libraries
)
SUMS_OF_TRANSPOSED = 1200  # results that such a product by a transposed matrix may have


class _OneBlasThread:
    """Keeps NumPy's BLAS from starting threads of its own in a `with` block, in all threads of the process."""

    def __init__(self) -> None:
        self._users = 0
        self._before: list[tuple[Any, int]] = []  # the libraries that have not one, and how many
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._before = [(library, count) for library in _libraries if (count := library.get_num_threads()) != 1]
                for library, _ in self._before:
                    _set_threads(library, 1)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                for library, count in self._before:
                    _set_threads(library, count)

    def forget_users(self) -> None:
        """In a forked process, in which the threads that were in a `with` block do not live."""
        self._lock = threading.Lock()
        if self._users:
            self._users = 1
            self.__exit__()


one_blas_thread = _OneBlasThread()
os.register_at_fork(after_in_child=one_blas_thread.forget_users)


def _set_threads(library: Any, count: int) -> None:
    library.set_num_threads(count)
    if library.get_num_threads() != count and hasattr(library, "clear_controlling_thread"):
        library.clear_controlling_thread(force=True)  # newer threadpoolctl heeds only the first thread that calls
        library.set_num_threads(count)
