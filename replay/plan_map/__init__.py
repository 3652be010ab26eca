"""The map of a model on this machine: which launches give one request's logits the same bits.

survey.py decides what to try; trials.py runs it on transformers, `replay.engines.map_vllm` on vLLM.
"""
