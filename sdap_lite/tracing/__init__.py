"""How a trace is made: ``writing`` puts the network down as operations, ``labeller`` runs them on channel labels.

``operations`` says of which kind each is; ``layer_rules``, ``operation_rules`` and ``products`` what each kind does to channels,
``widths`` whether it does the same at every width. ``labels`` is what runs, ``findings`` what comes to light.
:func:`sdap_lite.trace` (``channels.py``) puts them together. Chapter 3.
"""
