"""`mm_autofocus.parallel` by the name that benches have imported it."""

from mm_autofocus.parallel import Done, in_parallel

__all__ = ["Done", "in_parallel"]
