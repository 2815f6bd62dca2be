"""The digits of the demo as anyone's model and data, and the program called in-process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from sparsify.cli.app import main
from sparsify_image_classification.demo import write_demo


@dataclass(frozen=True)
class Done:
    """Hold what a call of the program printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> tuple[str, str]:
        """Return the error and the fix, the only lines of their kind."""
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        fixes = [line for line in self.err.splitlines() if line.startswith("fix: ")]
        assert len(errors) == len(fixes) == 1, self.err
        return errors[0].removeprefix("error: "), fixes[0].removeprefix("fix: ")


Call = Callable[..., Done]


@pytest.fixture
def sparsify(capsys: pytest.CaptureFixture[str]) -> Call:
    """Call the program with these arguments."""

    def call(*arguments: object) -> Done:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Done(int(caught.value.code or 0), printed.out, printed.err)

    return call


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write the demo's model and image folder once; tests must not change them."""
    return write_demo(tmp_path_factory.mktemp("digits"))
