"""The rate that a timing implies, in FLOP/s, compared with the best rate measured in the same run.

A rate above SLACK times the best is impossible: too little was timed or too much was counted. It is printed with both rates, and
the script ends with exit code 1. The Rust version is src/telemetry/rates.rs.
"""
import sys

SLACK = 1.1
AGAIN = 5


class Rates:
    def __init__(self, measure):
        """measure: returns the FLOP/s that this machine reaches; called again before a rate is called impossible."""
        self.measure, self.best, self.impossible = measure, measure(), []

    def of(self, name, flop, seconds):
        """The rate for `flop` in `seconds`, as text; records it if it is impossible."""
        rate = flop / seconds
        for _ in range(AGAIN):
            if rate <= SLACK * self.best:
                return f"{rate / 1e9:.1f} GFLOP/s"
            self.best = max(self.best, self.measure())
        told = f"{rate / 1e9:.1f} GFLOP/s, but this machine reaches {self.best / 1e9:.1f}"
        self.impossible.append(f"{name}: {told}")
        return told

    def end(self):
        """Ends the script if a rate was impossible."""
        if self.impossible:
            sys.exit("rates above %s times the best one measured:\n%s" % (SLACK, "\n".join(self.impossible)))
