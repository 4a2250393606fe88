"""The engine openai: questions to any server of the chat-completions protocol (vLLM, SGLang, llama.cpp, hosted models).

The key comes from an environment variable, goes to the one server that was named, and is in no file, log, manifest or
message.
"""
