"""Benchmarks whose data need Python: embedded images and the like."""
