"""How a trace is made: ``writing`` puts the network down as operations, ``labeller`` runs them on channel labels.

``operations`` says of which kind each is, ``widths`` whether it does the same at every width, and
``labels`` is what runs. :func:`sdap_lite.trace` (``channels.py``) puts them together. Chapter 3.
"""
