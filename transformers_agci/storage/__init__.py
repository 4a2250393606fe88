"""Everything that puts something on disk safely.

atomic      whole files              json_file   the JSON writer and reader     settings   their comparison
folder      whole folders            manifest    what a result was made with    journal    append-only JSON Lines
lock        one process at a time    result_file the results of a run
"""
