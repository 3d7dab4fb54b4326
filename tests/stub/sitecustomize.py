"""Python imports this at its start where the folder is on its path: what a program on the stub starts is on it too."""

import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder

NAME = "triton.runtime.driver"


class AfterTriton(MetaPathFinder):
    """Where Triton would look for a GPU's driver, it gets the stub's."""

    def find_spec(self, name, path=None, target=None):
        if name != NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module) -> None:
            load(module)
            module._create_driver = create

        spec.loader.exec_module = exec_module
        return spec


def create():
    from stub_triton import Driver

    return Driver()


if "libcuda.so" in os.environ.get("LD_PRELOAD", ""):
    sys.meta_path.insert(0, AfterTriton())
