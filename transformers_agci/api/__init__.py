"""What the commands do, as a few lines of Python; the commands are built on it.

    import transformers_agci as agci

    model = agci.load("Qwen/Qwen2.5-VL-3B-Instruct")        # or agci.wrap(model, processor): a live one
    data = agci.probe_data("rows.json", "images/")          # or agci.composites(images, captions), or the atlas
    run = agci.probe(model, data, lambdas=[0, 0.5])         # folder="results" keeps the files, and goes on in them
    run.to_pandas(), run.to_arrow(), run.statistics(), run.figure()

`occlusion`, `similarity`, `flow` and `benchmark` go the same way. `make_report`, `sweep` and `plan` take what is found,
`compare` holds methods against each other, `ruler` and `study` measure the embedded model. Everything is imported on
first use.
"""
