"""How a paired difference is put into words."""

from es2.report.formats import difference
from es2.results.paired import Difference


def said(**changes):
    values = {"change": 0.01, "low": -0.02, "high": 0.04, "n": 48, "p": 0.6, "detectable": 0.16}
    return difference(Difference(**values | changes)).replace("\N{NO-BREAK SPACE}", " ")


def test_a_difference_inside_the_noise_says_what_n_could_have_shown():
    assert said() == "+1.0 points (95 %: −2.0 to +4.0), inside the noise; n = 48 detects 16 points"


def test_a_difference_beyond_it_says_so():
    assert "(95 %: +2.0 to +4.0), beyond the noise;" in said(low=0.02, p=0.01)


def test_a_difference_that_the_exact_test_doubts_is_not_settled():
    assert "not settled (exact p 0.12)" in said(low=0.005, p=0.125)


def test_a_handful_of_pairs_detects_nothing():
    assert said(n=4, detectable=1.0).endswith("n = 4 is too few to detect any change")
