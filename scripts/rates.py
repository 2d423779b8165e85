"""What a timing means: FLOP a second, held against the best rate measured in the same run.

A figure above SLACK times that best cannot be: too little was timed or too much counted. It is printed with both rates, and the
script that prints it ends with exit code 1. In Rust: src/telemetry/rates.rs.
"""
import sys

SLACK = 1.1
AGAIN = 5


class Rates:
    def __init__(self, measure):
        """measure: returns the FLOP a second that this machine reaches; it is asked again before a figure is called impossible."""
        self.measure, self.best, self.impossible = measure, measure(), []

    def of(self, name, flop, seconds):
        """The rate that `seconds` for `flop` mean, in words; notes one that cannot be."""
        rate = flop / seconds
        for _ in range(AGAIN):
            if rate <= SLACK * self.best:
                return f"{rate / 1e9:.1f} GFLOP/s"
            self.best = max(self.best, self.measure())
        told = f"{rate / 1e9:.1f} GFLOP/s, but this machine reaches {self.best / 1e9:.1f}"
        self.impossible.append(f"{name}: {told}")
        return told

    def end(self):
        """Ends the script if a figure was impossible."""
        if self.impossible:
            sys.exit("rates above %s times the best one measured:\n%s" % (SLACK, "\n".join(self.impossible)))
