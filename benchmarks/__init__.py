"""Measurements that anyone can repeat. Each writes numbers, device, versions and commit to `benchmarks/results/`."""
