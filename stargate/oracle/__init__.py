"""The Oracle and judge client: one cached, metered way to ask a stronger model, remote or the run's
own.

    records.py   ChatRequest, ChatResult, AnswerStatus, Complete
    open.py      open_oracle           the Oracle that a config names
    client.py    Oracle                any OpenAI-compatible server, Azure
    local.py     LocalOracle           an engine of the run itself
    roleplayer_call.py                 a Roleplayer behind an API
    base.py      CachedOracle, stream  what both share
    cache.py, database.py, keys.py     every answer once, on disk
    cost.py, limits.py, failures.py, answers.py, api_key.py
"""
