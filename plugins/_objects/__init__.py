"""Procedural sample objects that every modality's sample set shows. Not a plugin: no manifest, no torch.

``objects`` says what there is, ``geometry`` gives each shape as a mesh, ``render`` makes pictures of it and
``store`` writes a sample set once. Sound, video and points of the same objects read the same parameters.
"""
