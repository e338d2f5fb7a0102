"""The sections of tools/rehearse_gpu.py, each a program of its own: one that fails takes no results of others along."""
