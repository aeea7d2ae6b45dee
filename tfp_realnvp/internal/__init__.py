"""Shared infrastructure, not part of the public interface."""
