"""What robustkd relies on, a test for each property of the plug-ins."""

from robustkd.plugin_kit import conformance

test_defense = conformance("defenses", "logit-matching", epochs=1)
test_attack = conformance("attacks", "rescaled-ascent", steps=5)
test_attack_on_prompts = conformance("attacks", "extra-words")
test_guard = conformance("defenses", "guarded-cupboard")
test_judge = conformance("judges", "says-the-number")
test_prompts = conformance("datasets", "cupboard")
