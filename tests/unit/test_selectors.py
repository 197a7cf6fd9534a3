"""Label selectors, node selectors, taints and tolerations mean what they mean in Kubernetes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fleets import equal, taint

from gpufleet.fleet.selectors import (
    LabelSelector,
    NodeSelector,
    NodeSelectorTerm,
    Requirement,
    Taint,
    Toleration,
    untolerated,
)
from gpufleet.scheduling.domains import label_test

LABELS = {"app": "web", "cores": "8", "empty": ""}


@pytest.mark.parametrize(
    ("requirement", "matches"),
    [
        (Requirement("app", "In", ("web", "db")), True),
        (Requirement("app", "In", ("db",)), False),
        (Requirement("zone", "In", ("",)), False),
        (Requirement("empty", "In", ("",)), True),
        (Requirement("app", "NotIn", ("db",)), True),
        (Requirement("app", "NotIn", ("web",)), False),
        (Requirement("zone", "NotIn", ("x",)), True),
        (Requirement("app", "Exists"), True),
        (Requirement("empty", "Exists"), True),
        (Requirement("zone", "Exists"), False),
        (Requirement("zone", "DoesNotExist"), True),
        (Requirement("empty", "DoesNotExist"), False),
        (Requirement("cores", "Gt", ("7",)), True),
        (Requirement("cores", "Gt", ("8",)), False),
        (Requirement("cores", "Lt", ("9",)), True),
        (Requirement("cores", "Lt", ("8",)), False),
        (Requirement("app", "Gt", ("1",)), False),
        (Requirement("cores", "Gt", ("many",)), False),
        (Requirement("cores", "Gt", ()), False),
        (Requirement("cores", "Gt", ("+7",)), True),
        (Requirement("cores", "Lt", ("1_0",)), False),
        (Requirement("cores", "Lt", (" 9",)), False),
        (Requirement("cores", "Lt", ("\u0669",)), False),
        (Requirement("cores", "Lt", ("9223372036854775807",)), True),
        (Requirement("cores", "Lt", ("9223372036854775808",)), False),
        (Requirement("zone", "Lt", ("9",)), False),
        (Requirement("app", "Matches", ("web",)), False),
    ],
)
def test_a_requirement_over_labels(requirement: Requirement, matches: bool) -> None:
    assert requirement.matches(LABELS) == matches


def test_numbers_are_compared_as_numbers() -> None:
    assert Requirement("cores", "Lt", ("10",)).matches({"cores": "9"})


def test_a_label_selector_is_a_conjunction_and_an_empty_one_matches_everything() -> None:
    both = LabelSelector((equal("app", "web"), Requirement("cores", "Exists")))
    assert both.matches(LABELS)
    assert not both.matches({"app": "web"})
    assert LabelSelector().matches({})


def test_a_node_selector_is_a_disjunction_and_an_empty_one_matches_nothing() -> None:
    either = NodeSelector((NodeSelectorTerm((equal("app", "db"),)), NodeSelectorTerm((equal("app", "web"),))))
    assert either.matches("a", LABELS)
    assert not either.matches("a", {"app": "cache"})
    assert not NodeSelector().matches("a", LABELS)


def test_a_term_over_labels_and_name_needs_both_and_an_empty_term_matches_nothing() -> None:
    term = NodeSelectorTerm((equal("app", "web"),), (equal("metadata.name", "a"),))
    assert term.matches("a", LABELS)
    assert not term.matches("b", LABELS)
    assert not term.matches("a", {})
    assert not NodeSelectorTerm().matches("a", LABELS)


@pytest.mark.parametrize(
    ("toleration", "given", "tolerated"),
    [
        (Toleration("gpu", "Equal", "h100", "NoSchedule"), "gpu=h100:NoSchedule", True),
        (Toleration("gpu", "Equal", "h100"), "gpu=h100:NoExecute", True),
        (Toleration("gpu", "Equal", "h100", "NoExecute"), "gpu=h100:NoSchedule", False),
        (Toleration("gpu", "Equal", "l4"), "gpu=h100:NoSchedule", False),
        (Toleration("gpu", "Equal"), "gpu:NoSchedule", True),
        (Toleration("gpu", "", "h100"), "gpu=h100:NoSchedule", True),
        (Toleration("gpu", "Exists"), "gpu=h100:NoSchedule", True),
        (Toleration("cpu", "Exists"), "gpu=h100:NoSchedule", False),
        (Toleration("", "Exists"), "gpu=h100:NoSchedule", True),
        (Toleration("", "Exists", "", "NoExecute"), "gpu=h100:NoSchedule", False),
        (Toleration("", "Equal"), "gpu:NoSchedule", False),
        (Toleration("age", "Gt", "5"), "age=6:NoSchedule", True),
        (Toleration("age", "Gt", "5"), "age=5:NoSchedule", False),
        (Toleration("age", "Lt", "5"), "age=4:NoSchedule", True),
        (Toleration("age", "Lt", "5"), "age=old:NoSchedule", False),
        (Toleration("", "Gt", "5"), "age=6:NoSchedule", False),
        (Toleration("gpu", "Like", "h100"), "gpu=h100:NoSchedule", False),
    ],
)
def test_a_toleration_and_a_taint(toleration: Toleration, given: str, tolerated: bool) -> None:
    assert toleration.tolerates(taint(given)) == tolerated


@pytest.mark.parametrize(
    "text", ["gpu=h100:NoSchedule", "gpu:NoExecute", "a.example.com/b=c:PreferNoSchedule"]
)
def test_a_taint_reads_as_kubectl_writes_it(text: str) -> None:
    assert str(taint(text)) == text


def test_the_first_taint_of_the_asked_effects_that_nothing_covers_is_found() -> None:
    soft, hard, evicting = Taint("a", "PreferNoSchedule"), Taint("b", "NoSchedule"), Taint("c", "NoExecute")
    assert untolerated([soft, hard, evicting], []) == hard
    assert untolerated([soft, hard, evicting], [Toleration("b", "Exists")]) == evicting
    assert untolerated([soft, hard], [Toleration("b", "Exists")]) is None
    assert untolerated([soft, hard], [], effects=["PreferNoSchedule"]) == soft
    assert untolerated([], []) is None


keys, values = st.sampled_from(["app", "tier", "zone"]), st.sampled_from(["", "x", "y", "7"])
requirements = st.one_of(
    st.builds(
        Requirement,
        keys,
        st.sampled_from(["In", "NotIn"]),
        st.lists(values, min_size=1, max_size=2).map(tuple),
    ),
    st.builds(Requirement, keys, st.sampled_from(["Exists", "DoesNotExist"])),
)


@given(st.lists(requirements, max_size=3).map(tuple), st.dictionaries(keys, values))
def test_the_fast_form_of_a_selector_matches_the_same_labels(
    chosen: tuple[Requirement, ...], labels: dict[str, str]
) -> None:
    selector = LabelSelector(chosen)
    assert label_test(selector)(labels) == selector.matches(labels)
    assert label_test(None)(labels) is False


@given(requirements, st.dictionaries(keys, values))
def test_an_operator_and_its_negation_never_agree(requirement: Requirement, labels: dict[str, str]) -> None:
    opposite = {"In": "NotIn", "NotIn": "In", "Exists": "DoesNotExist", "DoesNotExist": "Exists"}
    negated = Requirement(requirement.key, opposite[requirement.operator], requirement.values)
    assert requirement.matches(labels) != negated.matches(labels)
