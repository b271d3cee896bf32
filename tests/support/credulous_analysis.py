"""An analysis that certifies every sample."""

from robustkd.contracts import Analysis, Certificate, Table


class Credulous(Analysis):
    """Certifies every sample, whatever the network answers."""

    source = "a test"

    def run(self, target, batch, threat, seed):
        """It has proved nothing."""
        n = len(batch)
        return Table("all of them", ["all"], ["certified"], [[1.0]], certificate=Certificate([True] * n, [False] * n))
