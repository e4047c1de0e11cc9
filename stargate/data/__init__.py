"""Tasks, personas and golds: the packaged starter set, and what reads, checks and writes others.

dataset.py                    a dataset folder, validated                 runs read through it
reading.py, official.py       rows of other files, as found
cleaning.py, importers.py     rows -> Dataset, every change reported      stargate data import
quality.py, quality_golds.py  is a dataset fit to train and test on?      stargate data check
writing.py, exporters.py      Dataset -> files, whole or not at all       stargate data export
showing.py                    tables and pairs for people                 stargate data show
build/                        personas and golds by an Oracle             stargate data build
"""
