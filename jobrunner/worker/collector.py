"""The garbage collector of a process that holds many jobs."""

import gc

_YOUNG, _MIDDLE, _OLD = 50_000, 20, 100


def calm() -> None:
    """Collect garbage more rarely from now on, in the whole process.

    With 10,000 jobs a full collection stops every thread for 0.2 s, with 100,000 for seconds, and as it
    is, each look at which all of them change would bring one about. Nearly nothing of a worker is
    garbage that only a collection frees.
    """
    gc.collect()
    gc.freeze()  # what is here now stays: it need not be looked at again
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
