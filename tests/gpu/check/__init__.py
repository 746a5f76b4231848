"""What a machine with one GPU says of the code in a few minutes: `make gpu-check`.

    python -m tests.gpu.check --out DIR [--only machine,kernels] [--rehearse]

``parts`` lists what is run, ``driver`` runs each part in a process of its own and keeps what it found, ``recording``
puts that into benchmarks/gpu.json. A part is a function in one of the ``part_*`` modules.
"""
