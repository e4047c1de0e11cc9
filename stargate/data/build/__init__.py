"""Builds a dataset: tasks from a file or the hub, personas and golds from an Oracle.

    config.py       BuildConfig            what to build, from what, with whom, for how much
    prompts.py      BuildPrompts           what the Oracle is told, and the example personas
    sources.py      read_build_tasks ...   tasks and personas that are already there, cleaned
    facts.py        check_facts            facts that a model took out of a text: are they stated?
    personas.py     PersonaWriter          personas that a model invents, round by round
    golds.py        GoldWriter             one gold per pair, streamed
    folder.py       BuildFolder            one builder at a time, and OUT only when it is whole
    report.py       GoldReport ...         what became of everything
    rehearsal.py    RehearsalOracle        the same without a call: calls, tokens, money
    builder.py      Build                  the order of it all

    tasks    --+                                     OUT.partial/              OUT/
               +-> checked: splits share nothing -> tasks, personas -> golds -> all of it, renamed
    personas --+                                    (kept at once)   (spool)

What makes it resumable is the Oracle's cache: each answer is on disk before it counts, so the same
command repeats no call; tasks and personas are kept as soon as they are complete.
"""
