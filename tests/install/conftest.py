"""Tests that install packages: left out unless they are asked for, `pytest -m install`."""


def pytest_ignore_collect(config):
    return None if "install" in config.option.markexpr else True
