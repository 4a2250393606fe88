"""AGCI under vLLM: the plugin that vLLM finds by its entry point, and the engine of our own commands.

plugin.py     vLLM's way in: a model whose config carries lambda is built as a class that injects (docs/vllm.md)
injection.py  what is done to what a model's encoder returns; no vllm
marks.py      which items of a request are images, where vLLM's model is not told
worker.py     what a worker process tells of it
options.py    what it is started with
running.py    vLLM started with it; engine.py: the engine vllm of our own commands

vLLM starts processes of its own that import plugin.py before a model is built; the other files import vllm only when
they are used.
"""
