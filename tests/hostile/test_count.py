"""How many hostile cases there are, and that each has a name of its own."""

from hostile import (
    test_arrays,
    test_checkpoints,
    test_csv,
    test_flags,
    test_images,
    test_models,
    test_paths,
    test_runs,
    test_surroundings,
    test_weights,
)

MODULES = (test_arrays, test_checkpoints, test_csv, test_flags, test_images, test_models, test_paths, test_runs,
           test_surroundings, test_weights)  # fmt: skip


def test_there_are_hundreds_of_cases_each_with_a_message():
    cases = [case for module in MODULES for case in module.CASES]
    assert len(cases) >= 1000
    assert len({case.name for case in cases}) == len(cases)
    assert all(case.says for case in cases)
