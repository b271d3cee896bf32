"""An exam of the verdicts: networks whose robustness is an artefact and honest ones, drawn from parameters, audited and judged.

It imports of robustkd only ``audit``, and its truth comes from attacks of its own. ``make exam`` runs it.
"""
