"""Where one seed's samples barely fail to tell two defenses apart, nothing is said of seeds that disagree."""

from __future__ import annotations

import numpy as np

from robustkd.reporting.pairwise import networks_sentence
from robustkd.scoring.claims import claims
from robustkd.scoring.paired import compared


def test_a_lone_seed_is_not_said_to_disagree():
    a, b = np.ones(5, bool), np.zeros(5, bool)  # McNemar's exact p is 0.063, and four samples are thought to be enough
    (claim,) = claims(compared([("a", 0, a), ("b", 0, b)]))
    assert claim.networks is None
    assert claim.needed is not None
    assert claim.needed <= claim.n
    assert networks_sentence(claim) == "n = 5 cannot tell a from b."
    all_, none = np.ones(40, bool), np.zeros(40, bool)
    (several,) = claims(compared([("a", 0, all_), ("b", 0, none), ("a", 1, all_), ("b", 1, all_)]))
    assert networks_sentence(several) == "n = 40 cannot tell a from b: the seeds disagree."
