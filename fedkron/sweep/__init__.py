"""Grids of runs: what is to run (`grid`), what has run (`journal`), running it (`workers`), what came of it
(`table`).
"""
