"""How one series is forecast: candidate methods, their record on the series' own past, and what follows from it.

All of it works on the square roots of rates. Unlike a logarithm, a root of zero exists; noise of arrivals has there the
same size at every level (Bartlett 1936), so errors of a quiet hour say something about a busy one; and it is linear in
scale, so that a forecast in tokens is the forecast in kilotokens.
"""
