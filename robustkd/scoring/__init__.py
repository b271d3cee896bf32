"""From per-sample evidence to numbers: distances, judged outcomes, intervals, worst cases."""
