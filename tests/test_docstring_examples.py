"""Examples in docstrings run as pasted, on every backend."""

import doctest

import pytest
from public_names import documented

from dynzoo import backend
from dynzoo.export.formats import check_available

# What is not run, and why.
NOT_RUN = {
    "dynzoo.training.train": "needs CIFAR-10 and ten minutes",
    "dynzoo.push_to_hub": "writes to a server, for whoever is logged in there",
    "dynzoo.tuning.search": "trains three networks for minutes",
    "dynzoo.tuning.HyperModel": "trains three networks for minutes",
}
# Examples that write a format which not every backend writes, or only with a package.
FORMATS = {"dynzoo.export.export_model": "onnx"}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Checker(doctest.OutputChecker):
    """Floats may differ by rounding."""

    def check_output(self, want, got, optionflags):
        if super().check_output(want, got, optionflags):
            return True
        try:
            return float(got) == pytest.approx(float(want), rel=1e-5)
        except ValueError:
            return False


def examples():
    parser = doctest.DocTestParser()
    for name, value in documented().items():
        test = parser.get_doctest(value.__doc__ or "", {}, name, None, 0)
        if test.examples:
            yield name, test


EXAMPLES = dict(examples())


def test_tables_name_examples():
    assert set(NOT_RUN) | set(FORMATS) <= set(EXAMPLES)


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - set(NOT_RUN)))
def test_example_runs_as_pasted(name, tmp_path, monkeypatch):
    if name in FORMATS:
        try:
            check_available(FORMATS[name], backend.name(), run=True)
        except ValueError as reason:
            pytest.skip(str(reason))
    monkeypatch.chdir(tmp_path)
    failures = []
    runner = doctest.DocTestRunner(Checker(), verbose=False, optionflags=FLAGS)
    runner.run(EXAMPLES[name], out=failures.append)
    assert not failures, "".join(failures)
