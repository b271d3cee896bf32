"""What YAML 1.1 makes of a number that is written in another way: 010 is 8, 1:30 is 90, true is 1. Nobody means that."""

import pytest

import robustkd
from robustkd.contracts import UsageError
from support.campaigns import FGSM, tiny_campaign


def planned(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    return robustkd.run(file, out=tmp_path / "out", workers=0, track=False)


@pytest.mark.parametrize(
    ("written", "told"), [("010", "010 is 8 in YAML"), ("1:30", "1:30 is 90 in YAML"), ("-017", "-017 is -15 in YAML")]
)
def test_a_number_that_is_read_as_another_is_refused(written, told, tmp_path):
    with pytest.raises(UsageError, match=f"c.yaml:3: .*{told}"):
        planned(tmp_path, tiny_campaign(test=written))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (tiny_campaign(test="true"), r"c.yaml:3: data.test: true is not allowed: .*a number"),
        (tiny_campaign(attacks={"pgd": "{kind: pgd, steps: true}"}), r"attacks.pgd.steps: true is not allowed: .*a number"),
        (tiny_campaign(matrix="{seeds: [no]}"), r"matrix.seeds.*a number"),
        (
            tiny_campaign(matrix="{seeds: [18446744073709551616]}"),
            r"c.yaml:6: .*18446744073709551616.. is no number below 2\^63",
        ),
        (tiny_campaign(test="0x" + "f" * 5000), r"c.yaml:3: .*0xffffffffffffffffff.. is no number below"),
        (tiny_campaign(attacks={'"fgsm\\n"': "{kind: fgsm}"}), r"c.yaml:\d+: attacks.fgsm.n: .* is not allowed"),
        (tiny_campaign(test="9" * 5000), r"c.yaml: this YAML cannot be read: Exceeds the limit"),
        (tiny_campaign(train="1}\n? " + "k" * 5000 + "\n: {a: 1"), r"c.yaml:4: a key has 5,000 characters"),
    ],
)
def test_a_truth_value_or_a_seed_beyond_all_generators_is_no_number(text, key, tmp_path):
    with pytest.raises(UsageError, match=key):
        planned(tmp_path, text)


def test_usual_numbers_are_what_they_are(tmp_path):
    results = planned(tmp_path, tiny_campaign(train="1_00", test="0x0a", attacks=FGSM).replace("eps: 0.1", "eps: 8/255"))
    assert (results.cells[0].n, results.cells[0].eps) == (10, 8 / 255)
