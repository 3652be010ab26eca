"""The map of a model on this machine: which launches give one request's logits the same bits.

cells.py has the nouns, survey.py decides what to try; trials.py runs it on transformers, and
`replay.engines.map_vllm` on vLLM.
"""
