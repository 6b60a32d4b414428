"""Benchmarks of the data layer: large sets, throughput of the cache."""
