"""Lets stock transformers honour "global_context_broadcast_lambda" in config.json; TRANSFORMERS_AGCI=0 turns it off.

transformers_agci.pth (from Python 3.15 on transformers_agci.start) calls `start` whenever Python starts. It only waits:
once a program imports transformers.modeling_utils, method/autoload.py does the rest. It never stops Python.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
import os
import sys

THIS = sys.modules[__name__]  # is the finder, by its find_spec


def start():
    if os.environ.get("TRANSFORMERS_AGCI") != "0" and THIS not in sys.meta_path:
        sys.meta_path.insert(0, THIS)


def find_spec(name, path=None, target=None):
    if name != "transformers.modeling_utils":
        return None
    from importlib import util

    sys.meta_path.remove(THIS)
    spec = util.find_spec(name)
    or_say_why(activate_after, spec)
    return spec


def activate_after(spec):
    stock = spec.loader.exec_module
    activate = lambda: __import__("transformers_agci.method.autoload").method.autoload.activate()  # noqa: E731, PLW0108
    spec.loader.exec_module = lambda module: (stock(module), or_say_why(activate))


def or_say_why(action, *args):
    try:
        action(*args)
    except Exception as error:
        print(f"transformers_agci: lambda in config.json does nothing: {error!r}", file=sys.stderr)
