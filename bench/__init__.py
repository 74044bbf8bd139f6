"""Every figure that the README quotes, as a command: `python -m bench` (all), or one part by name.

Each part prints ratios measured in one run; absolute times belong to the machine they were taken on.
"""
