"""A replica without a model: its scheduling, its speed and its tokens, all computed. Pure: no vLLM, no Ray, no clock.

    answers.py    which tokens a request is answered with, a function of its prompt and seed
    scheduler.py  continuous batching with chunked prompts, a bounded KV cache and preemption
    planned.py    limits and step times from the planner's cost model
    pace.py       step times on the clock

`deployments.simulated_engine` puts it behind the interface of the real engine.
"""
