"""Which process of a distributed run this is; of them the first alone shows and writes what a person reads."""

from torch import distributed


def is_first_process() -> bool:
    """Whether this is the process of rank 0, or the only one."""
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
