from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mm_autofocus.report import ReportData


@pytest.fixture(scope="session")
def night() -> Callable[..., ReportData]:
    """The generator of synthetic.py, loaded by path: importlib mode puts no test folder on sys.path."""
    spec = importlib.util.spec_from_file_location("report_synthetic", Path(__file__).with_name("synthetic.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.night


@pytest.fixture(scope="session")
def plate(night: Callable[..., ReportData]) -> ReportData:
    return night()
