"""Values and arithmetic of a GPU fleet: nodes, pods, products, MIG geometry, reasons. No I/O, imports no
other room.
"""
