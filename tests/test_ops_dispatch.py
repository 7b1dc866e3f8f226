"""Dispatch: each device and mode gets its form, and everything optional can be switched off."""

import importlib.util
import math

import pytest
import torch

from noria.modeling.ops import dispatch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_each_place_has_its_form() -> None:
    assert dispatch.choose_form(CPU, 1) == "step"
    assert dispatch.choose_form(CUDA, 1) == "step"
    assert dispatch.choose_form(CPU, 2) == "fast"
    assert dispatch.choose_form(CUDA, 2) == "chunkwise"


def test_exported_graphs_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "is_tracing_graph", lambda: True)
    assert dispatch.choose_form(CPU, 2) == "chunkwise"


def test_forced_form_is_given_back() -> None:
    with dispatch.forced_form("sequential"):
        assert dispatch.choose_form(CPU, 1) == "sequential"
        with dispatch.forced_form(None):
            assert dispatch.choose_form(CPU, 2) == "fast"
        assert dispatch.choose_form(CUDA, 2) == "sequential"
    with pytest.raises(RuntimeError, match="inside"), dispatch.forced_form("parallel"):
        raise RuntimeError("inside")
    assert dispatch.choose_form(CPU, 2) == "fast"
    with pytest.raises(ValueError, match="form must be one of"), dispatch.forced_form("quick"):
        pass


@pytest.mark.parametrize(("value", "form"), [("torch", "fast"), ("plain", "chunkwise"), ("", "fast")])
def test_environment_switches_paths_off(value: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORIA_KERNELS", value)
    spec = importlib.util.spec_from_file_location("dispatch_read_again", dispatch.__file__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    assert fresh.choose_form(CPU, 2) == form
    assert fresh.optional_kernel("math", "sqrt", CUDA) is (None if value else math.sqrt)


def test_unknown_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_KERNELS", "fastest")
    with pytest.raises(ValueError, match="NORIA_KERNELS must be torch or plain, not 'fastest'"):
        dispatch.choose_form(CPU, 2)


def test_optional_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dispatch.optional_kernel("math", "sqrt", CPU) is None
    assert dispatch.optional_kernel("math", "sqrt", CUDA) is not None
    assert dispatch.optional_kernel("math", "no_such_function", CUDA) is None
    assert dispatch.optional_kernel("no_such_package.ops", "sqrt", CUDA) is None
    with dispatch.forced_form("chunkwise"):
        assert dispatch.optional_kernel("math", "sqrt", CUDA) is None
    monkeypatch.setattr(dispatch, "_KERNELS", "torch")
    assert dispatch.optional_kernel("math", "sqrt", CUDA) is None
