"""How image sets come from files: ``archives`` from the net, ``trees`` of a folder a class, ``batch_files`` of their authors."""
