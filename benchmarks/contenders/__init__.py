"""The contenders: one implementation a file, all with the same four operations."""

from benchmarks.contenders.contender import Contender, NotAvailable, contender_class

__all__ = ["Contender", "NotAvailable", "contender_class"]
