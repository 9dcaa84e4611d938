"""The interconnect decides how to cut a model: an experiment for one machine without GPUs, in one command.

    python -m deployments.crossover [--speeds unshaped,1gbit,100mbit] [--out DIR]

Two emulated islands are joined by a cable whose speed is set (namespaces.py). The real engine runs a small model cut in
four ways: whole (tp1), over two workers of one island (tp2 inside), and over two islands, either each layer in halves
(tp2 across) or the layers in halves (pp2 across). The time of a step is measured at each speed (measure.py) and
predicted by the planner's cost functions from probes of the link and from the two cuts that do not use it (probe.py,
predict.py). The outcome is a table, results.json and a plot (report.py).

What comes out: tensor parallelism halves the work of each worker but sums activations across the link in every layer, a
pipeline halves nothing but crosses the link once. So on a fast link tensor parallelism is faster, on a slow link the
pipeline is, and prompts, which send 256 times the bytes of one token, change sides at a far faster link than decoding.
README.md has the figures of one run.
"""
